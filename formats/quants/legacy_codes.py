"""The codes of Q4_0, Q4_1, Q5_0 and Q5_1 in a block; ``legacy.py`` describes the layout."""

from numpy import int32

from ..jit import inline
from .contract import Bytes
from .fields import put_u16
from .lanes import Ints, lane_numbers, positions
from .memory import get_bytes, put_bytes

WIDTH = 32


@inline
def put_codes(low: Ints, high: Ints, has_fifth: bool, out: Bytes, at: int) -> None:
    """Codes of the first and the second half of a block."""
    if has_fifth:
        fifth = positions((low & 16) == 16, (high & 16) == 16)
        put_u16(fifth, out, at)
        put_u16(fifth >> 16, out, at + 2)
        at += 4
    put_bytes(out, at, (low & 15) | ((high & 15) << 4))


@inline
def get_codes(raw: Bytes, at: int, has_fifth: bool) -> tuple[Ints, Ints]:
    """The way back.

    Without a branch: with one, Numba counts references to the array for each block, which costs more than all the rest.
    """
    codes = get_bytes(raw, at + 4 * int32(has_fifth))
    first = (int32(raw[at]) | (int32(raw[at + 1]) << 8)) * int32(has_fifth)
    second = (int32(raw[at + 2]) | (int32(raw[at + 3]) << 8)) * int32(has_fifth)
    lane = lane_numbers()
    low = ((((lane & 0) | int32(first)) >> lane) & 1) << 4
    high = ((((lane & 0) | int32(second)) >> lane) & 1) << 4
    return (codes & 15) | low, (codes >> 4) | high
