"""The Spec IR: what is computed, with names for axes and no tiles; its text form and verifier."""
