"""RAM on bfloat16 as it is stored: decode, merge and encode in registers, with the bits of ``codecs`` and ``cpu``.

Nearly every checkpoint is bfloat16, and for a merge of a few agents decoding and encoding through memory costs as much
as the merge itself. These kernels take the patterns (uint16) of at most ``MAX_STORED_AGENTS`` agents, all finite: a NaN
that an agent brings counts as unchanged, as in ``cpu``, and would be lost unseen. So they say whether all was finite,
inputs, deltas and result, by a running maximum of magnitudes; where it was not, the caller takes the way over float32.
"""

from collections.abc import Sequence

import numpy as np
from numpy import float32, int32, uint16, uint32
from numpy.typing import NDArray

from ..formats.jit import inline, jit
from .contract import MAX_STORED_AGENTS

Codes = NDArray[np.uint16]
Counts = NDArray[np.int64]
Scalar = float | np.float32

_ZERO, _ONE = float32(0), float32(1)
_INFINITY = uint32(0x7F80_0000)
_CODES = "Array(uint16, 1, 'C', True)"
_FIVE = ", ".join([_CODES] * 5)


@inline
def _value(code: np.uint16) -> np.float32:
    return uint32(uint32(code) << uint32(16)).view(float32)


@inline
def _nearest(value: np.float32) -> np.uint16:
    """To bfloat16, ties to even. Finite inputs make no NaN here: the deltas of one base overflow to one side."""
    bits = float32(value).view(uint32)
    odd = uint32(uint32(bits >> uint32(16)) & uint32(1))
    return uint16(uint32(uint32(bits + uint32(0x7FFF)) + odd) >> uint32(16))


@inline
def _larger(a: uint32, b: uint32) -> uint32:
    return a if a > b else b


@inline
def _largest(largest: uint32, d0: np.float32, d1: np.float32, d2: np.float32, d3: np.float32) -> uint32:
    """``largest`` or the bits of a larger magnitude; NaN and infinity are larger than every number."""
    m0, m1 = float32(abs(d0)).view(uint32), float32(abs(d1)).view(uint32)
    m2, m3 = float32(abs(d2)).view(uint32), float32(abs(d3)).view(uint32)
    return _larger(largest, _larger(_larger(m0, m1), _larger(m2, m3)))


@inline
def _add(tally: Counts, changed: tuple[int32, ...], unique: tuple[int32, ...]) -> None:
    for i in range(tally.shape[0]):
        tally[i, 0] += changed[i]
        tally[i, 1] += unique[i]


@jit(f"boolean({_FIVE}, float32, float32[::1], uint16[::1], int64[:, ::1])")
def _ram(
    base: Codes, x0: Codes, x1: Codes, x2: Codes, x3: Codes,
    epsilon: Scalar, scales: NDArray[np.float32], out: Codes, tally: Counts,
) -> bool:  # fmt: skip
    largest = uint32(0)
    f0, f1, f2, f3 = scales[0], scales[1], scales[2], scales[3]
    changed_0 = changed_1 = changed_2 = changed_3 = int32(0)
    unique_0 = unique_1 = unique_2 = unique_3 = int32(0)
    for j in range(out.size):
        b = _value(base[j])
        d0, d1, d2, d3 = _value(x0[j]) - b, _value(x1[j]) - b, _value(x2[j]) - b, _value(x3[j]) - b
        largest = _largest(largest, d0, d1, d2, d3)
        is_0, is_1, is_2, is_3 = abs(d0) > epsilon, abs(d1) > epsilon, abs(d2) > epsilon, abs(d3) > epsilon
        d0 = d0 if is_0 else _ZERO
        d1 = d1 if is_1 else _ZERO
        d2 = d2 if is_2 else _ZERO
        d3 = d3 if is_3 else _ZERO
        count = (
            ((_ONE if is_0 else _ZERO) + (_ONE if is_1 else _ZERO))
            + ((_ONE if is_2 else _ZERO) + (_ONE if is_3 else _ZERO))
        )  # fmt: skip
        total = ((d0 + d1) + d2) + d3
        alone = ((d0 * f0 + d1 * f1) + d2 * f2) + d3 * f3
        is_alone = count == _ONE
        merged = _nearest(b + (alone if is_alone else total / count))
        merged = merged if count > _ZERO else base[j]
        largest = _larger(largest, uint32(uint32(uint32(merged) << uint32(16)) & uint32(0x7FFF_FFFF)))
        out[j] = merged
        changed_0 = int32(changed_0 + int32(is_0))
        changed_1 = int32(changed_1 + int32(is_1))
        changed_2 = int32(changed_2 + int32(is_2))
        changed_3 = int32(changed_3 + int32(is_3))
        unique_0 = int32(unique_0 + int32(is_0 & is_alone))
        unique_1 = int32(unique_1 + int32(is_1 & is_alone))
        unique_2 = int32(unique_2 + int32(is_2 & is_alone))
        unique_3 = int32(unique_3 + int32(is_3 & is_alone))
    changed = (changed_0, changed_1, changed_2, changed_3)
    _add(tally, changed, (unique_0, unique_1, unique_2, unique_3))
    return bool(largest < _INFINITY)


@jit(f"boolean({_FIVE}, float32, int64[:, ::1])")
def _count_changes(base: Codes, x0: Codes, x1: Codes, x2: Codes, x3: Codes, epsilon: Scalar, tally: Counts) -> bool:
    largest = uint32(0)
    changed_0 = changed_1 = changed_2 = changed_3 = int32(0)
    unique_0 = unique_1 = unique_2 = unique_3 = int32(0)
    for j in range(base.size):
        b = _value(base[j])
        d0, d1, d2, d3 = _value(x0[j]) - b, _value(x1[j]) - b, _value(x2[j]) - b, _value(x3[j]) - b
        largest = _largest(largest, d0, d1, d2, d3)
        is_0, is_1, is_2, is_3 = abs(d0) > epsilon, abs(d1) > epsilon, abs(d2) > epsilon, abs(d3) > epsilon
        count = (
            ((_ONE if is_0 else _ZERO) + (_ONE if is_1 else _ZERO))
            + ((_ONE if is_2 else _ZERO) + (_ONE if is_3 else _ZERO))
        )  # fmt: skip
        is_alone = count == _ONE
        changed_0 = int32(changed_0 + int32(is_0))
        changed_1 = int32(changed_1 + int32(is_1))
        changed_2 = int32(changed_2 + int32(is_2))
        changed_3 = int32(changed_3 + int32(is_3))
        unique_0 = int32(unique_0 + int32(is_0 & is_alone))
        unique_1 = int32(unique_1 + int32(is_1 & is_alone))
        unique_2 = int32(unique_2 + int32(is_2 & is_alone))
        unique_3 = int32(unique_3 + int32(is_3 & is_alone))
    changed = (changed_0, changed_1, changed_2, changed_3)
    _add(tally, changed, (unique_0, unique_1, unique_2, unique_3))
    return bool(largest < _INFINITY)


def _four(base: Codes, agents: Sequence[Codes]) -> tuple[Codes, Codes, Codes, Codes]:
    """The base stands in for agents that are not there: it changes nothing."""
    x0, x1, x2, x3 = (*agents, *[base] * (MAX_STORED_AGENTS - len(agents)))
    return x0, x1, x2, x3


class Stored:
    """The primitives of ``Kernels`` that take bfloat16 as stored. ``finite``: whether all that they met was."""

    def __init__(self) -> None:
        self.finite = True

    def ram(
        self,
        base: Codes,
        agents: Sequence[Codes],
        epsilon: Scalar,
        scales: NDArray[np.float32],
        out: Codes,
        tally: Counts,
    ) -> None:
        """See ``Kernels``."""
        four_scales = np.ones(MAX_STORED_AGENTS, float32)
        four_scales[: len(agents)] = scales
        self.finite &= _ram(base, *_four(base, agents), epsilon, four_scales, out, tally)

    def count_changes(self, base: Codes, agents: Sequence[Codes], epsilon: Scalar, tally: Counts) -> None:
        """See ``Kernels``."""
        self.finite &= _count_changes(base, *_four(base, agents), epsilon, tally)
