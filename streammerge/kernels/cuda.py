"""The primitives of ``contract.py`` in torch, for CUDA: the bits of ``cpu.py`` and ``sums.py``, on any device of torch.

* An operation of the specification is one of torch, rounded once. What is divided by is a tensor, because CUDA
  multiplies by the reciprocal of a number. Floats are added up one after another; ``sum`` is for what is exact.
* Nothing waits for the device, so nothing is decided by what it holds. Numbers of the host go along with the call.
* Agents are overwritten where the contract allows it, or taken one by one, so that ``scratch`` hardly grows with them.
* What is not finite has other bits than on the CPU. Whoever calls looks at inputs and results and does such a chunk on
  the CPU. Where ``sign_consensus`` meets an infinite delta with a weight of 0, only the CPU's result is finite.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import cuda_sums
from .contract import Scalar
from .cuda_random import RandomMasks
from .cuda_sums import number

_MAGNITUDE = 0x7FFF_FFFF
# Neighbours count in histograms of their own: most deltas may be 0, and one address takes them one after another.
_LANES = 32


def scratch(agents: int) -> int:
    """Bytes for each element of ``out`` that a primitive takes at most beside its arguments."""
    return max(32, agents + 2)


def _rounded(value: Scalar) -> float:
    return float(np.float32(value))


def _upload(array: NDArray[np.int32], device: torch.device) -> Tensor:
    """A small array, copied to the device without waiting for what the device does meanwhile."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def _changes(base: Tensor, agents: Tensor, epsilon: Scalar) -> Tensor:
    """The deltas in place of the agents, 0 where |delta| <= epsilon."""
    deltas = agents.sub_(base)
    return torch.hardshrink(deltas, _rounded(epsilon), out=deltas)


def _add_in_order(rows: Tensor, out: Tensor) -> Tensor:
    out.zero_()
    for row in rows:
        out.add_(row)
    return out


def _scale(rows: Tensor, factors: NDArray[np.floating]) -> None:
    for row, factor in zip(rows, factors):
        if np.float32(factor) != 1:
            row.mul_(_rounded(factor))


def _add_tally(changed: Tensor, unique: Tensor, tally: Tensor) -> None:
    """What was counted by agent and block (agents, ...), exact in float32."""
    for column, found in enumerate((changed, unique)):
        tally[:, column].add_(found.to(torch.int64).reshape(len(tally), -1).sum(1))


def count_changes(base: Tensor, agents: Tensor, epsilon: Scalar, tally: Tensor) -> None:
    """See ``Kernels``."""
    deltas = _changes(base, agents, epsilon)
    changed = number(deltas)
    deltas.masked_fill_(number(deltas, 0) != 1, 0)
    _add_tally(changed, number(deltas), tally)


def _merge(
    base: Tensor,
    agents: Tensor,
    epsilon: Scalar,
    scales: NDArray[np.float32],
    out: Tensor,
    tally: Tensor,
    divide_first: bool,
) -> None:
    deltas = _changes(base, agents, epsilon)
    changed, count = number(deltas), number(deltas, 0)
    divisor = count.clamp(min=1)
    if divide_first:
        deltas.div_(divisor)
    _add_in_order(deltas, out)
    if not divide_first:
        out.div_(divisor)
    deltas.masked_fill_(count != 1, 0)
    _add_tally(changed, number(deltas), tally)
    if np.any(scales != 1):
        _scale(deltas, scales)
        torch.where(count == 1, _add_in_order(deltas, torch.empty_like(out)), out, out=out)
    out.add_(base)
    torch.where(count == 0, base, out, out=out)


def ram(base: Tensor, agents: Tensor, epsilon: Scalar, scales: NDArray[np.float32], out: Tensor, tally: Tensor) -> None:
    """See ``Kernels``."""
    _merge(base, agents, epsilon, scales, out, tally, divide_first=False)


def ram_divide_first(
    base: Tensor, agents: Tensor, epsilon: Scalar, scales: NDArray[np.float32], out: Tensor, tally: Tensor
) -> None:
    """See ``Kernels``."""
    _merge(base, agents, epsilon, scales, out, tally, divide_first=True)


def subtract_base(base: Tensor, agents: Tensor) -> None:
    """See ``Kernels``."""
    agents.sub_(base)


def add_to_base(base: Tensor, merged: Tensor, out: Tensor) -> None:
    """See ``Kernels``."""
    nothing = merged == 0
    torch.add(base, merged, out=out)
    torch.where(nothing, base, out, out=out)


def weighted_sum(rows: Tensor, weights: NDArray[np.float32], factor: Scalar, divisor: Scalar, out: Tensor) -> None:
    """See ``Kernels``."""
    out.zero_()
    for row, weight in zip(rows, weights):
        out.add_(row * float(weight))
    if np.float32(divisor) != 1:
        out.div_(out.new_full((), _rounded(divisor)))
    if np.float32(factor) != 1:
        out.mul_(_rounded(factor))


def combine(base: Tensor, row: Tensor, a: Scalar, b: Scalar, out: Tensor) -> None:
    """See ``Kernels``."""
    torch.mul(base, _rounded(a), out=out).add_(row * _rounded(b))


def keep_unchanged(base: Tensor, agents: Tensor, out: Tensor) -> None:
    """See ``Kernels``."""
    differs = (agents.view(torch.int32) != base.view(torch.int32)).any(0)
    torch.where(differs, out, base, out=out)


def sign_consensus(deltas: Tensor, weights: NDArray[np.float32], normalize: bool, factor: Scalar, out: Tensor) -> None:
    """See ``Kernels``. The deltas that agree are those that are positive once multiplied with the elected sign."""
    _scale(deltas, weights)
    _add_in_order(deltas, out)
    sign = torch.ones_like(out).masked_fill_(out < 0, -1)
    deltas.mul_(sign).relu_()
    _add_in_order(deltas, out)
    if normalize:
        out.div_(_agreeing_weight(deltas, weights))
    if np.float32(factor) != 1:
        out.mul_(_rounded(factor))
    out.mul_(sign)


def _agreeing_weight(agreeing: Tensor, weights: NDArray[np.float32]) -> Tensor:
    """The sum of the weights of what is not 0, and 1 where it is 0."""
    _scale(agreeing.gt_(0), weights)
    total = _add_in_order(agreeing, torch.empty_like(agreeing[0]))
    return total.masked_fill_(total == 0, 1)


def _magnitude_bits(row: Tensor) -> Tensor:
    return row.view(torch.int32) & _MAGNITUDE


def histogram_high(rows: Tensor, counts: Tensor) -> None:
    """See ``Kernels``."""
    one = torch.ones((), dtype=torch.int32, device=rows.device)
    for row, numbers in zip(rows, counts):
        bins = _magnitude_bits(row).bitwise_right_shift_(16)
        _count_bins(bins, one.expand_as(bins), numbers)


def histogram_low(rows: Tensor, high: NDArray[np.int64], counts: Tensor) -> None:
    """See ``Kernels``."""
    for row, upper, numbers in zip(rows, high, counts):
        bits = _magnitude_bits(row)
        present = (bits >> 16).eq_(int(upper))
        _count_bins(bits.bitwise_and_(0xFFFF), present, numbers)


def _count_bins(bins: Tensor, present: Tensor, counts: Tensor) -> None:
    """counts[b] += how often bin b is ``present`` (0 or 1, int32)."""
    bins, present = bins.reshape(-1).to(torch.int64), present.reshape(-1)
    width = max(1, min(_LANES, len(bins) // len(counts)))  # divides several blocks, and is 1 for a shorter one
    lanes = counts.new_zeros((len(counts), width), dtype=torch.int32)
    lanes.scatter_add_(0, bins.view(-1, width), present.view(-1, width))
    counts.add_(lanes.sum(1, dtype=torch.int32))


def _signed(thresholds: NDArray[np.uint32]) -> list[int]:
    """As int32, which no finite magnitude reaches where the threshold is beyond all of them."""
    return [min(int(threshold), _MAGNITUDE) for threshold in thresholds]


def count_equal(rows: Tensor, thresholds: NDArray[np.uint32], counts: Tensor) -> None:
    """See ``Kernels``."""
    for row, threshold, numbers in zip(rows, _signed(thresholds), counts):
        numbers.add_(_magnitude_bits(row).eq_(threshold).sum(-1, dtype=torch.int32))


def keep_largest(rows: Tensor, thresholds: NDArray[np.uint32], quota: NDArray[np.int64]) -> None:
    """See ``Kernels``."""
    for row, threshold, left in zip(rows, _signed(thresholds), np.moveaxis(quota, -1, 0)):
        row.masked_fill_(_lower_than(row, threshold, left), 0)


def _lower_than(row: Tensor, threshold: int, quota: NDArray[np.int64]) -> Tensor:
    """Whether an element lies below the threshold, or equals it and comes after the first ones that do (of each block
    ``quota``)."""
    bits = _magnitude_bits(row)
    lower = bits < threshold
    if np.any(quota < row.shape[-1]):
        equal = bits.eq_(threshold)
        limits = _upload(np.asarray(np.minimum(quota, row.shape[-1]), np.int32), row.device)
        beyond = equal.cumsum(-1, dtype=torch.int32) > limits[..., None]
        lower.logical_or_(beyond.logical_and_(equal != 0))
    return lower


def scale_rows(rows: Tensor, factors: NDArray[np.float64]) -> None:
    """See ``Kernels``."""
    _scale(rows, factors)


class Torch:
    """The torch backend: see ``Kernels`` for what each primitive means."""

    def __init__(self, device: torch.device) -> None:
        self.keep_random = RandomMasks(device).keep_random

    count_changes = staticmethod(count_changes)
    ram = staticmethod(ram)
    ram_divide_first = staticmethod(ram_divide_first)
    subtract_base = staticmethod(subtract_base)
    add_to_base = staticmethod(add_to_base)
    weighted_sum = staticmethod(weighted_sum)
    combine = staticmethod(combine)
    keep_unchanged = staticmethod(keep_unchanged)
    sign_consensus = staticmethod(sign_consensus)
    histogram_high = staticmethod(histogram_high)
    histogram_low = staticmethod(histogram_low)
    count_equal = staticmethod(count_equal)
    keep_largest = staticmethod(keep_largest)
    sums_of_magnitudes = staticmethod(cuda_sums.sums_of_magnitudes)
    inner_products = staticmethod(cuda_sums.inner_products)
    scale_rows = staticmethod(scale_rows)
    observe = staticmethod(cuda_sums.observe)
