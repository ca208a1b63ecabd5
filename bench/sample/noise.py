"""Cheap counter-based noise: any run of any stream, without generating what comes before it.

Random values are made once, into a pool. A stream is a 64-bit key; each of its units of 65,536 items reads the pool
from an offset hashed from key and unit number, which costs a memory copy. Streams repeat the pool's values in other
places: fine for sizes, densities and speed, not for cryptography or for benchmarks of compression.
"""

from functools import cache
from hashlib import blake2b
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.sample.bits import to_bf16
from bench.sample.checkpoint import ITEM

UNIT = 1 << 16
POOL = 1 << 22
_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


class Pool:
    """Random values that streams read in an order of their own."""

    def __init__(self, values: NDArray[Any]) -> None:
        """Take POOL values; the first UNIT of them are repeated at the end, so that a unit may begin anywhere."""
        self.values = np.concatenate([values, values[:UNIT]])

    def fill(self, stream: int, start: int, out: NDArray[Any]) -> None:
        """Items start, start + 1, ... of a stream into `out`."""
        done = 0
        while done < len(out):
            unit, within = divmod(start + done, UNIT)
            count = min(UNIT - within, len(out) - done)
            offset = splitmix64(stream + unit * _GOLDEN) % POOL + within
            out[done : done + count] = self.values[offset : offset + count]
            done += count


def stream_key(*parts: object) -> int:
    """A 64-bit key from the text of its parts."""
    return int.from_bytes(blake2b("\0".join(map(str, parts)).encode(), digest_size=8).digest(), "little")


def splitmix64(x: int) -> int:
    """The finalizer of SplitMix64 (Steele, Lea, Flood 2014): a bijection of 64-bit integers."""
    x = ((x ^ (x >> 30)) & _MASK) * 0xBF58476D1CE4E5B9 & _MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & _MASK
    return x ^ (x >> 31)


@cache
def uniform_pool() -> Pool:
    """Uniform uint16."""
    # numpy's own generators may change their streams between versions; this may not.
    x = np.arange(POOL // 4, dtype=np.uint64) * np.uint64(_GOLDEN)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return Pool((x ^ (x >> np.uint64(31))).astype("<u8").view("<u2"))


@cache
def step_pool() -> Pool:
    """Steps -4..-1 and 1..4, equally likely, as int16."""
    steps = (uniform_pool().values[:POOL] & 7).astype("<i2") - 4
    return Pool(steps + (steps >= 0))


@cache
def normal_pool(dtype: str, mean: float, deviation: float) -> Pool:
    """The bits of normal values in a safetensors dtype: 65,536 quantiles in the order of the uniform pool."""
    quantiles = np.array([NormalDist(mean, deviation).inv_cdf((i + 0.5) / 65536) for i in range(65536)], dtype="<f4")
    return Pool(_bits(quantiles, dtype)[uniform_pool().values[:POOL]])


def _bits(values: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    if dtype == "F32":
        return values.view(ITEM[dtype])
    if dtype == "F16":
        return values.astype("<f2").view(ITEM[dtype])
    return to_bf16(values)
