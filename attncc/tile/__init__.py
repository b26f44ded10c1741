"""The Tile IR: how it is computed. Host programs and kernels, their text form, verifier and interpreter."""
