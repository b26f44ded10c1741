"""What a multiprocessor of compute capability 9.0 has for the programs on it."""

from __future__ import annotations

REGISTERS = 65536
SHARED_BYTES = 232448
LANES = 8
"""Neighbouring columns of an accumulator that four threads share, two each; every next eight are shared alike."""
