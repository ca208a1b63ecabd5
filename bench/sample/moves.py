"""Where and how far an agent moves from its base: sparse steps of 1 to 4 bf16 values, partly in a common mask."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.sample.bits import move
from bench.sample.noise import splitmix64, step_pool, stream_key, uniform_pool

LOW_BITS = {"BF16": 0, "F16": 3, "F32": 16}
"""A bf16 step is 2 to this power steps of the dtype, which has so many mantissa bits more."""

LARGEST = {"BF16": 0x7F7F, "F16": 0x7BFF, "F32": 0x7F7FFFFF}
"""The bits of the largest finite value."""


@dataclass(frozen=True)
class Moves:
    """Which positions of a tensor an agent moves: those where a 16-bit noise lies below a threshold."""

    seed: int
    index: int
    density: tuple[float, float]
    shared: float

    def __post_init__(self) -> None:
        """ValueError for densities and shares that are none."""
        if not 0 <= self.density[0] <= self.density[1] <= 1 or not 0 <= self.shared <= 1:
            raise ValueError(f"density {self.density} and shared {self.shared} must be shares from 0 to 1, low to high")

    def thresholds(self, tensor: str) -> tuple[int, int]:
        """Thresholds of the common and of the agent's own noise; together they change the drawn density."""
        low, high = self.density
        draw = splitmix64(stream_key(self.seed, "density", tensor, self.index)) / 2**64
        density = low + (high - low) * draw
        common = density * self.shared
        # The two choices are independent and may overlap.
        own = (density - common) / (1 - common) if common < 1 else 0.0
        return round(common * 65536), round(own * 65536)

    def fill(self, tensor: str, dtype: str, bits: NDArray[Any], start: int) -> None:
        """Move the base's bits of elements start, start + 1, ... in place."""
        common, own = self.thresholds(tensor)
        noise = np.empty(len(bits), dtype="<u2")
        uniform_pool().fill(stream_key(self.seed, "common", tensor), start, noise)
        changed = noise < common
        uniform_pool().fill(stream_key(self.seed, "own", tensor, self.index), start, noise)
        changed |= noise < own
        steps = noise.view("<i2")
        step_pool().fill(stream_key(self.seed, "step", tensor, self.index), start, steps)
        steps *= changed
        _move_finite(bits, steps, dtype)


def _move_finite(bits: NDArray[Any], steps: NDArray[np.int16], dtype: str) -> None:
    """Move `bits` by bf16 steps, except where that could leave the finite values."""
    wide = steps.astype(np.dtype(f"<i{bits.dtype.itemsize}"), copy=False) << LOW_BITS[dtype]
    sign = 1 << (bits.dtype.itemsize * 8 - 1)
    wide *= (bits & bits.dtype.type(sign - 1)) <= LARGEST[dtype] - (4 << LOW_BITS[dtype])
    move(bits, wide)
