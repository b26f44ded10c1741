"""Side-by-side timing: compiled specs and the peers that are installed, on the same tensors, rounds interleaved."""
