"""What each primitive means, whatever computes it: the specification of a backend.

A backend works on **blocks**: at most 65,536 consecutive elements of one tensor, decoded to float32, of the
base and of every agent. All arithmetic is float32, each operation rounded once, in the order written here,
without fused multiply-add. So every backend gives the same bits, and no chunk size, thread count or device can
change them.

The **float64 sum of a block**: tiles of ``TILE`` elements, the last one filled up with zeros, are widened, and
multiplied where it is a sum of products; a tile is folded in half until one number is left (p[j] += p[j + 512],
p[j] += p[j + 256] ...), and these are added up tile by tile.

A backend may take **several blocks at once**. Then arrays of elements have an axis of blocks before the last: base
and out (blocks, BLOCK), agents (agents, blocks, BLOCK). What is measured by block has it as the last axis, quotas as
the first, and ``Block.index`` is a slice; counts, which may be added up in any order, have no such axis.

Methods (``streammerge.methods``) are written once against these primitives.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

# The unit of float64 sums: a tensor's flat index range is cut into blocks of this many elements from 0 on.
BLOCK = 65_536
TILE = 1024

# Of each run of 8,192 elements the first 32 are looked at for repetitions: as many as quantized formats scale together.
SAMPLE, SAMPLED_RUN = 32, 8_192

# An array of the backend: numpy.ndarray on the CPU, torch.Tensor on CUDA.
Array = Any
Scalar = float | np.float32


@dataclass(slots=True)
class Block:
    """One block of one tensor, in float32 or as stored.

    ``base`` (n), ``agents`` (agents x n) and ``out`` (n) are workspace; ``Kernels`` says what overwrites them. As
    stored, they are bytes, ``agents`` is a sequence of rows, and the primitives are those of ``stored.Stored``: the
    result is what decoding, computing in float32 and encoding would give, bit for bit. So a method gives primitives
    these arrays, its parameters, and what it counts in, nothing else.
    ``index`` is the block's number in its tensor (a slice for several), ``start`` its first element's flat index.
    ``tally`` (agents x 2, int64) adds up changed and unique weights where a method counts them.
    """

    tensor: str
    index: int | slice
    start: int
    base: Array
    agents: Array
    out: Array
    tally: Array


class Kernels(Protocol):
    """The primitives. ``x[i]`` is agent i's row, ``j`` an element; loops over agents run in agent order.

    After ``count_changes``, ``ram``, ``ram_divide_first`` and ``sign_consensus`` nothing is known of agents (deltas).
    Whatever else a primitive does not fill is left as it is."""

    def count_changes(self, base: Array, agents: Array, epsilon: Scalar, tally: Array) -> None:
        """changed_i[j] = |x[i,j] - base[j]| > float32(epsilon). Adds to tally[i] = (changed, unique): how many
        elements agent i changed, and how many of them no other agent changed."""
        ...

    def ram(self, base: Array, agents: Array, epsilon: Scalar, scales: Array, out: Array, tally: Array) -> None:
        """Reinforced Agent Merging. d_i = x[i] - base; count = number of agents that changed the element.
        count 0: out = base, bit for bit. count 1: base + d_i * scales[i]. count >= 2: base + (sum of the changed
        d_i in agent order, starting from 0) / count. Tally as in ``count_changes``."""
        ...

    def ram_divide_first(
        self, base: Array, agents: Array, epsilon: Scalar, scales: Array, out: Array, tally: Array
    ) -> None:
        """As ``ram``, but each shared d_i is divided by the count before the sum (mergekit's order)."""
        ...

    def subtract_base(self, base: Array, agents: Array) -> None:
        """x[i] -= base, in place: agents become deltas; 0 where the bits are equal (so also for equal infinities)."""
        ...

    def add_to_base(self, base: Array, merged: Array, out: Array) -> None:
        """out = base + merged; where merged is 0, base bit for bit. ``out`` may be ``merged``."""
        ...

    def weighted_sum(self, rows: Array, weights: Array, factor: Scalar, divisor: Scalar, out: Array) -> None:
        """out = ((((0 + rows[0] * w[0]) + rows[1] * w[1]) + ...) / divisor) * factor; a divisor or factor of 1 is
        skipped."""
        ...

    def combine(self, base: Array, row: Array, a: Scalar, b: Scalar, out: Array) -> None:
        """out = base * a + row * b."""
        ...

    def keep_unchanged(self, base: Array, agents: Array, out: Array) -> None:
        """out = base where every agent has the base's bits."""
        ...

    def sign_consensus(self, deltas: Array, weights: Array, normalize: bool, factor: Scalar, out: Array) -> None:
        """TIES: D_i = deltas[i] * w[i]; the elected sign is + if sum D_i >= 0, else -; sum the D_i of that sign,
        divide by the sum of their weights (by 1 where it is 0) if ``normalize``, multiply by factor."""
        ...

    def histogram_high(self, rows: Array, counts: Array) -> None:
        """counts[i, b] += number of j whose |rows[i,j]|, as float32 bits, has the upper 16 bits b (b < 32768)."""
        ...

    def histogram_low(self, rows: Array, high: Array, counts: Array) -> None:
        """counts[i, b] += number of j with the upper 16 bits equal to high[i] and the lower 16 bits b."""
        ...

    def count_equal(self, rows: Array, thresholds: Array, counts: Array) -> None:
        """counts[i] += number of j whose magnitude bits equal thresholds[i] (uint32)."""
        ...

    def keep_largest(self, rows: Array, thresholds: Array, quota: Array) -> None:
        """Zero, in place, what lies below thresholds[i] (uint32 bits of a magnitude); of what equals it
        the first quota[i] stay."""
        ...

    def keep_random(self, rows: Array, density: Array, keys: Array, start: int) -> None:
        """Zero elements at random, in place: element e = start + j of row i stays if u < density[i], where u is the
        upper 53 bits of word e of the Philox4x64-10 stream with the 128-bit key keys[i] (two uint64, low first)."""
        ...

    def sums_of_magnitudes(self, rows: Array, sums: Array) -> None:
        """sums[i] += sum over j of |rows[i,j]|, a float64 sum of a block (see above)."""
        ...

    def inner_products(self, x: Array, y: Array, sums: Array) -> None:
        """sums += (x.x, x.y, y.y), float64 sums of a block (see above)."""
        ...

    def scale_rows(self, rows: Array, factors: Array) -> None:
        """rows[i] *= float32(factors[i]), in place; a factor of 1 is skipped."""
        ...

    def observe(
        self,
        base: Array,
        agents: Array,
        epsilon: Scalar,
        whole: Array,
        by_count: Array,
        by_agent: Array,
        by_pair: Array,
    ) -> None:
        """Everything about a block in one go; all are float64 and added to. d_i = x[i] - base in float32, changed_i as
        in ``count_changes``. Sums of products are float64 sums of a block.

        ``whole`` (3): base.base; for each run of SAMPLED_RUN elements that has a whole sample, SAMPLE, and how many of
        its first SAMPLE values repeat an earlier one of these in the base (zeros do not count).
        ``by_count`` (agents + 1): elements that exactly k agents changed.
        ``by_agent`` (agents x 6): changed; changed by no other; |d_i| > float32(1e-5); d_i.d_i; the largest |d_i|
        (not added: the larger stays); repeated values of x[i], as of the base.
        ``by_pair`` (agents x (agents - 1) / 2 x 3, in the order 01 02 .. 12 ..): changed by both; of these with
        the same sign; d_i.d_k."""
        ...
