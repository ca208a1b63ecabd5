"""Tables of values that codes stand for; plain numbers, so that they cost no Numba."""

from itertools import pairwise

from numpy import float32

_IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
IQ4_VALUES = tuple(float32(v) for v in _IQ4)
# An element in the middle belongs to the higher value. Rounding in float32 does not move any of these limits.
IQ4_LIMITS = tuple(float32((a + b) / 2) for a, b in pairwise(_IQ4))
