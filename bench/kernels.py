"""python -m bench kernels: billions of elements a second on one core, blocks of 65,536 elements resident in cache.

An element is one weight of the output: with three agents four inputs are read for it. Every primitive is called as
methods call it; what works in place gets its input back before each call, and that copy's time is taken off.
"""

import statistics
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import cast

import numpy as np
from numpy.typing import NDArray

from bench.oracle import EPSILON, blend, narrow, widen
from bench.process import BenchError
from bench.results import Cell, Result, Table
from streammerge.formats import codecs
from streammerge.formats.dtypes import DTYPES
from streammerge.kernels.contract import BLOCK, Block, Kernels
from streammerge.kernels.load import load_cpu
from streammerge.kernels.stored import Stored
from streammerge.methods import build_method

AGENTS = (1, 3, 8, 16)
CHAINED = ("ram", "ram+", "ramplus_tl", "linear", "task_arithmetic")
GOAL = 0.5
_SAMPLES = 5

Call = Callable[[], object]
Floats = NDArray[np.float32]
Bits = NDArray[np.uint16]


def bench_kernels(seconds: float) -> Result:
    """Measure codecs, primitives and chains."""
    load_cpu()
    clock = Clock(seconds)
    result = Result("kernels", "Kernels", {"block": f"{BLOCK:,} elements"}, notes=list(_NOTES))
    result.tables = [_chains(clock), _codecs(clock), _primitives(clock)]
    return result


_NOTES = (
    "G elements/s: billions of output elements by second, the median of five samples; N is the number of agents. One "
    "core: by the processor time of the thread; two threads: by the clock.",
    "chain: for each block decode base and agents from bf16, blend, encode to bf16, with the executor's calls.",
    "Before they were timed, the chains of ram and ramplus_tl were compared with plain numpy, and the codecs went "
    "there and back.",
    "two threads: both together, each with blocks of its own.",
)


@dataclass(frozen=True)
class Clock:
    """Measures calls in samples of at least ``seconds``, in one thread by its processor time."""

    seconds: float

    def time(self, call: Call) -> float:
        """Seconds of one call: the median over the samples."""
        call()
        repeat = max(1, int(self.seconds / max(self._sample(call, 3), 1e-7)))
        return statistics.median(self._sample(call, repeat) for _ in range(_SAMPLES))

    def _sample(self, call: Call, repeat: int) -> float:
        began = time.thread_time()
        for _ in range(repeat):
            call()
        return (time.thread_time() - began) / repeat

    def together(self, calls: list[Call]) -> float:
        """Seconds of one call of each when all run at once in threads."""
        repeat = max(1, int(self.seconds * _SAMPLES / self.time(calls[0])))
        threads = [threading.Thread(target=self._sample, args=(call, repeat)) for call in calls]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return (time.perf_counter() - began) / repeat


def _rate(seconds: float, blocks: int = 1) -> float:
    return round(blocks * BLOCK / seconds / 1e9, 3)


# --- data ------------------------------------------------------------------------------------------------------------


@dataclass
class Data:
    """One block of a base and of agents that moved a sixth of its weights by a few steps of bf16."""

    agents: int
    bits: list[Bits] = field(init=False)

    def __post_init__(self) -> None:
        """Draw it."""
        random = np.random.default_rng(0)
        base = narrow(random.normal(0, 0.02, BLOCK).astype(np.float32))
        self.bits = [base]
        for _ in range(self.agents):
            moved = random.random(BLOCK) < 1 / 6
            self.bits.append(np.where(moved, base + random.integers(1, 5, BLOCK, np.uint16), base))

    def floats(self) -> tuple[Floats, Floats]:
        """Base and agents in float32."""
        return widen(self.bits[0]), np.stack([widen(bits) for bits in self.bits[1:]])


# --- the chain -------------------------------------------------------------------------------------------------------


class Chain:
    """One block with buffers of its own from bytes to bytes, as one worker of the executor does it."""

    def __init__(self, method: str, agents: int) -> None:
        self.data = Data(agents)
        self._raws = [bits.view(np.uint8) for bits in self.data.bits]
        self.packed = np.empty(2 * BLOCK, np.uint8)
        self._tally = np.zeros((agents, 2), np.int64)
        self._method = build_method(method, {}, agents)
        self._state = np.full((agents, 2), [1000, 500], np.int64)  # of methods that count before they blend

    def __call__(self) -> None:
        """One block."""
        base, *agents = self._raws
        block = Block("weight", 0, 0, base, agents, self.packed, self._tally)
        stored = Stored(block, ["BF16"] * (len(agents) + 2))
        self._method.blend(cast(Kernels, stored), block, self._state)
        stored.run()

    def check(self, *, divide_first: bool) -> None:
        """Raises BenchError if ram or ramplus_tl gave wrong bits."""
        self()
        scales = np.ones(len(self._tally), np.float32)
        if divide_first:  # 500 shared and 500 unique: a ratio of 1, clipped to 0.2, times 0.1
            scales[:] = np.float32(1) + np.float32(0.1) * np.float32(0.2)
        wanted = blend(self.data.bits[0], self.data.bits[1:], scales, divide_first=divide_first)
        if not np.array_equal(wanted, self.packed.view(np.uint16)):
            raise BenchError("the chain gave other bits than plain numpy")


def _chains(clock: Clock) -> Table:
    columns = ("method", "N", "one core", "two threads", f"goal {GOAL} at N = 3")
    table = Table("## The whole chain: G elements/s", columns)
    for agents in AGENTS:
        for method, divide_first in (("ram", False), ("ramplus_tl", True)):
            Chain(method, agents).check(divide_first=divide_first)
    for method in CHAINED:
        for agents in AGENTS:
            chains: list[Call] = [Chain(method, agents) for _ in range(2)]
            one, two = _rate(clock.time(chains[0])), _rate(clock.together(chains), 2)
            verdict = "" if agents != 3 else "yes" if one >= GOAL else "**no**"
            table.rows.append((method, agents, one, two, verdict))
    return table


# --- codecs ----------------------------------------------------------------------------------------------------------


def _codecs(clock: Clock) -> Table:
    values = widen(Data(0).bits[0])
    table = Table("## Codecs: G elements/s on one core", ("dtype", "decode", "encode"))
    for dtype in ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"):
        packed = np.empty(BLOCK * DTYPES[dtype].itemsize, np.uint8)
        out, again = np.empty(BLOCK, np.float32), np.empty_like(packed)
        codecs.encode(dtype, values, packed)
        codecs.decode(dtype, packed, out)
        codecs.encode(dtype, out, again)
        if not np.array_equal(packed, again) or not np.allclose(values, out, rtol=0.13, atol=1e-3):
            raise BenchError(f"{dtype}: encoding and decoding do not agree")
        decode = clock.time(partial(codecs.decode, dtype, packed, out))
        encode = clock.time(partial(codecs.encode, dtype, values, again))
        table.rows.append((dtype, _rate(decode), _rate(encode)))
    return table


# --- primitives ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One primitive: its call, and what gives its input back where it works in place."""

    name: str
    call: Call
    restore: Call | None = None


def _cases(agents: int) -> Iterator[Case]:
    kernels = load_cpu()
    base, rows = Data(agents).floats()
    deltas = rows - base
    work, out = rows.copy(), np.empty(BLOCK, np.float32)
    ones, tally, sums = np.ones(agents, np.float32), np.zeros((agents, 2), np.int64), np.zeros(agents, np.float64)
    high, low = np.zeros((agents, 1 << 15), np.int64), np.zeros((agents, 1 << 16), np.int64)
    thresholds = np.full(agents, np.float32(1e-4).view(np.uint32), np.uint32)
    bins = (thresholds >> np.uint32(16)).astype(np.int64)
    density, keys = np.full(agents, 0.5), np.arange(2 * agents, dtype=np.uint64).reshape(agents, 2)

    def rows_back() -> None:
        work[:] = rows

    def deltas_back() -> None:
        work[:] = deltas

    yield Case("count_changes", lambda: kernels.count_changes(base, rows, EPSILON, tally))
    yield Case("ram", lambda: kernels.ram(base, rows, EPSILON, ones, out, tally))
    yield Case("ram_divide_first", lambda: kernels.ram_divide_first(base, rows, EPSILON, ones, out, tally))
    yield Case("subtract_base", lambda: kernels.subtract_base(base, work), rows_back)
    yield Case("add_to_base", lambda: kernels.add_to_base(base, deltas[0], out))
    yield Case("weighted_sum", lambda: kernels.weighted_sum(rows, ones, 1.0, 3.0, out))
    yield Case("combine", lambda: kernels.combine(base, rows[0], 0.5, 0.5, out))
    yield Case("keep_unchanged", lambda: kernels.keep_unchanged(base, rows, out))
    yield Case("sign_consensus", lambda: kernels.sign_consensus(deltas, ones, True, 1.0, out))
    yield Case("histogram_high", lambda: kernels.histogram_high(deltas, high))
    yield Case("histogram_low", lambda: kernels.histogram_low(deltas, bins, low))
    yield Case("count_equal", lambda: kernels.count_equal(deltas, thresholds, tally[:, 0].copy()))
    quota = np.ones(agents, np.int64)
    yield Case("keep_largest", lambda: kernels.keep_largest(work, thresholds, quota), deltas_back)
    yield Case("keep_random", lambda: kernels.keep_random(work, density, keys, 0), deltas_back)
    yield Case("sums_of_magnitudes", lambda: kernels.sums_of_magnitudes(deltas, sums))
    products = np.zeros(3)
    yield Case("inner_products", lambda: kernels.inner_products(base, rows[0], products))
    yield Case("scale_rows", lambda: kernels.scale_rows(work, density), deltas_back)


def _primitives(clock: Clock) -> Table:
    columns = ("primitive", *(f"N = {agents}" for agents in AGENTS))
    rates: dict[str, list[Cell]] = {}
    for agents in AGENTS:
        for case in _cases(agents):
            rates.setdefault(case.name, []).append(_rate(_net_time(clock, case)))
    rows: list[tuple[Cell, ...]] = [(name, *found) for name, found in rates.items()]
    return Table("## Primitives: G elements/s on one core", columns, rows)


def _net_time(clock: Clock, case: Case) -> float:
    if case.restore is None:
        return clock.time(case.call)
    restore, call = case.restore, case.call

    def both() -> None:
        restore()
        call()

    return max(clock.time(both) - clock.time(restore), 1e-9)
