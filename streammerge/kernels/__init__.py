"""Primitives on float32 blocks. ``contract.py`` says what each means; ``cpu.py`` (Numba) does it."""
