"""python -m bench quants: our quantizers against ggml's, in one thread, after comparing their bytes.

A case is one type, with or without an importance matrix. In a round every case has its turn, and within a case ours,
ggml's and a plain copy of as many float32 follow each other.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from statistics import median

import numpy as np
from numpy.typing import NDArray

from bench.ggml import Ggml, GgmlMissingError, ggml_version, load_ggml
from bench.process import BenchError, busy, wait_for_calm
from bench.results import Cell, Result, Table, middle
from streammerge.formats import codecs, quants
from streammerge.formats.dtypes import DTYPES

ROW = 4096
ROWS = 8192  # at the most: 128 MiB of float32, for which most caches are too small
CACHED_ROWS = 32  # 512 KiB

# How many times as fast as ggml a search has to be, with and without importance matrix.
GOALS = {"Q4_K": 5.0, "Q5_K": 5.0, "Q2_K": 3.0, "Q3_K": 3.0, "Q6_K": 3.0, "IQ4_XS": 3.0}
# What has no search without importance matrix: as fast as a copy of the input, which moves more bytes than they do.
AT_MEMORY_SPEED = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "TQ1_0", "TQ2_0", "MXFP4")

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Call = Callable[[], object]

_NOTES = (
    "M/s: millions of elements a second by the processor time of one thread, from the median time. Ratios are taken "
    "within a round; the median with the least and the largest.",
    "ggml: `ggml_quantize_chunk` and `to_float` of libggml-base as llama-cpp-python builds it, one call for all rows. "
    "Its quantizers are compiled for the x86-64 of 2003, in `llama-quantize` as well; ours for the processor here.",
    "Bytes, and decoded values bit for bit, were equal on the very data before anything was timed.",
    "in cache: ours on 32 rows, 512 KiB of float32, which stay in the second-level cache, as a chunk of a merge does.",
    "of a copy: the time of `np.copyto` of as many float32 divided by ours. At memory speed means 1 or more: an "
    "encoder reads as much as the copy and writes a quarter or less.",
    "others: how many cores everything else kept busy during a round.",
    "Data: gaussian rows of different spread, rounded to bf16.",
)


def bench_quants(rounds: int, seconds: float) -> Result:
    """Measure all encoders and decoders; ``seconds`` is about what one sample of ggml may take."""
    try:
        ggml = load_ggml()
    except GgmlMissingError as error:
        raise BenchError(str(error)) from error
    values, weights = make_rows()
    names = ("F16", "BF16", *quants.QUANTS)
    spare = np.zeros_like(values)
    makers = [Maker(ggml, name, values, spare, seconds) for name in names]
    encoders = [maker.encoder(importance) for maker in makers for importance in maker.importances(weights)]
    decoders = [maker.decoder() for maker in makers]
    others = [_round([*encoders, *decoders], seconds / 5) for _ in range(rounds)]
    settings = {"rounds": rounds, "row": ROW, "elements": f"up to {ROWS * ROW:,}", "others": f"{middle(others)} cores"}
    result = Result("quants", "Quantized types against ggml", settings, notes=list(_NOTES), packages=ggml_version())
    result.tables = [_encode_table(encoders), _decode_table(decoders)]
    result.runs = [case.raw() for case in (*encoders, *decoders)]
    return result


def make_rows() -> tuple[Floats, Floats]:
    """Values, one row in each row, and the importance of the columns."""
    random = np.random.default_rng(0)
    spread = np.exp(random.normal(-4, 0.3, (ROWS, 1))).astype(np.float32)
    values = random.standard_normal((ROWS, ROW), np.float32) * spread
    packed = np.empty(values.size * 2, np.uint8)
    codecs.encode("BF16", values.ravel(), packed)
    codecs.decode("BF16", packed, values.reshape(-1))
    return values, np.exp(random.standard_normal(ROW)).astype(np.float32)


# --- cases -----------------------------------------------------------------------------------------------------------


@dataclass
class Case:
    """What is compared, and the seconds that each took in each round."""

    name: str
    is_weighted: bool
    elements: int
    calls: dict[str, Call]  # ours, ggml's, a copy, and ours on ``CACHED_ROWS`` only
    seconds: dict[str, list[float]] = field(init=False)

    def __post_init__(self) -> None:
        """No seconds yet."""
        self.seconds = {which: [] for which in self.calls}

    def sample(self, least: float) -> None:
        """One turn of each, of at least so many seconds."""
        for which, call in self.calls.items():
            self.seconds[which].append(_time(call, least))

    def rate(self, which: str) -> float:
        """Millions of elements a second."""
        elements = CACHED_ROWS * ROW if which == "cached" else self.elements
        return elements / median(self.seconds[which]) / 1e6

    def ratios(self, other: str) -> list[float]:
        """The other's time divided by ours, in each round."""
        return [theirs / ours for theirs, ours in zip(self.seconds[other], self.seconds["ours"], strict=True)]

    def raw(self) -> dict[str, object]:
        """For the JSON file."""
        return {"type": self.name, "imatrix": self.is_weighted, "elements": self.elements, **self.seconds}


def _round(cases: list[Case], least: float) -> float:
    """One turn of every case, once the machine is calm; how many cores everything else kept busy meanwhile."""
    wait_for_calm()
    before, began, own = busy(), time.perf_counter(), time.process_time()
    for case in cases:
        case.sample(least)
    return max(busy() - before - (time.process_time() - own), 0.0) / (time.perf_counter() - began)


def _time(call: Call, least: float) -> float:
    """Seconds of one call, of as many as take ``least`` seconds together."""
    began, calls, taken = time.thread_time(), 0, 0.0
    while calls == 0 or taken < least:
        call()
        calls += 1
        taken = time.thread_time() - began
    return taken / calls


@dataclass
class Maker:
    """Makes the cases of one type, once our results were found equal to ggml's."""

    ggml: Ggml
    name: str
    values: Floats  # (ROWS, ROW)
    spare: Floats  # of the same size: what is copied or decoded goes there
    seconds: float

    def importances(self, weights: Floats) -> tuple[Floats | None, ...]:
        """No imatrix, and one where ggml uses it."""
        return (None, weights) if self.name in quants.QUANTS and quants.QUANTS[self.name].imatrix else (None,)

    def encoder(self, weights: Floats | None) -> Case:
        """The case of the encoder."""
        few = self.values[:CACHED_ROWS].ravel()
        rows = self._fitting_rows(partial(self.ggml.encode, self.name, few, ROW, weights))
        part = self.values[:rows].ravel()
        wanted = self.ggml.encode(self.name, part, ROW, weights)
        found = np.full_like(wanted, 0xA5)
        _encode(self.name, part, weights, found)
        if not np.array_equal(found, wanted):
            how = "without" if weights is None else "with"
            raise BenchError(f"{self.name}, {how} imatrix: our bytes are not those of ggml")
        calls: dict[str, Call] = {
            "ours": partial(_encode, self.name, part, weights, found),
            "ggml": partial(self.ggml.encode_into, self.name, part, ROW, weights, wanted),
            "copy": partial(np.copyto, self.spare[:rows].ravel(), part),
            "cached": partial(
                _encode, self.name, few, weights, np.empty_like(found[: found.size // rows * CACHED_ROWS])
            ),
        }
        return Case(self.name, weights is not None, part.size, calls)

    def decoder(self) -> Case:
        """The case of the decoder."""
        few = self.values[:CACHED_ROWS].ravel()
        chunk = self.ggml.encode(self.name, few, ROW, None)
        rows = self._fitting_rows(partial(self.ggml.decode_into, self.name, chunk, np.empty_like(few)))
        raw, out = np.tile(chunk, rows // CACHED_ROWS), self.spare[:rows].ravel()
        found = np.full_like(out, np.nan)
        _decode(self.name, raw, found)
        self.ggml.decode_into(self.name, raw, out)
        if not np.array_equal(found.view(np.uint32), out.view(np.uint32)):
            raise BenchError(f"{self.name}: our decoded values are not those of ggml")
        calls: dict[str, Call] = {
            "ours": partial(_decode, self.name, raw, out),
            "ggml": partial(self.ggml.decode_into, self.name, raw, out),
            "copy": partial(np.copyto, out, self.values[:rows].ravel()),
            "cached": partial(_decode, self.name, chunk, np.empty_like(few)),
        }
        return Case(self.name, False, out.size, calls)

    def _fitting_rows(self, few: Call) -> int:
        """How many rows take ``seconds``, if ``few`` is the work for the first ones."""
        few()
        return int(np.clip(self.seconds / max(_time(few, 0), 1e-6), 4, ROWS // CACHED_ROWS)) * CACHED_ROWS


def _encode(name: str, values: Floats, weights: Floats | None, out: Bytes) -> None:
    if name in DTYPES:
        codecs.encode(name, values, out)
    else:
        quants.encode(name, values, ROW, weights, out)


def _decode(name: str, raw: Bytes, out: Floats) -> None:
    if name in DTYPES:
        codecs.decode(name, raw, out)
    else:
        quants.decode(name, raw, out)


# --- tables ----------------------------------------------------------------------------------------------------------


_MEASURED = ("in cache, M/s", "ours, M/s", "ggml, M/s", "times ggml", "of a copy")


def _encode_table(cases: list[Case]) -> Table:
    columns = ("type", "imatrix", *_MEASURED, "goal", "met")
    return Table("## Encoding", columns, [_row(case, *_goal(case)) for case in cases])


def _decode_table(cases: list[Case]) -> Table:
    columns = ("type", *_MEASURED)
    return Table("## Decoding", columns, [(case.name, *_row(case)[2:]) for case in cases])


def _row(case: Case, *more: Cell) -> tuple[Cell, ...]:
    rates = [round(case.rate(which), 1) for which in ("cached", "ours", "ggml")]
    ratios = middle(case.ratios("ggml")), middle(case.ratios("copy"))
    return (case.name, "with" if case.is_weighted else "-", *rates, *ratios, *more)


def _goal(case: Case) -> tuple[str, str]:
    """The goal of an encoder, and whether the median over the rounds meets it."""
    if case.name in GOALS:
        goal = GOALS[case.name]
        return f"{goal:g} times ggml", "yes" if median(case.ratios("ggml")) >= goal else "**no**"
    if case.name in AT_MEMORY_SPEED and not case.is_weighted:
        return "memory speed", "yes" if median(case.ratios("copy")) >= 1 else "**no**"
    return "", ""
