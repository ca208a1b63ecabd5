"""What every quantized type must satisfy; ``test_quants.py`` calls these checks for each of them.

Three references: rows that ``llama-quantize``'s library made (golden file), the library itself where llama_cpp is
installed, and the decoders of the gguf package.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from bench.ggml import Ggml, GgmlMissingError, load_ggml
from streammerge.formats import quants

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Encoder = Callable[[str, Floats, int, Floats | None], Bytes]  # type, values, row, weights

GOLDEN = Path(__file__).parents[1] / "fixtures" / "golden" / "ggml_quants.npz"
ROW = 512


def encode(name: str, values: Floats, row: int, weights: Floats | None) -> Bytes:
    """Blocks into an array that was not zero before and has a byte too many on either side, which must stay."""
    quant = quants.QUANTS[name]
    guarded = np.full(values.size // quant.block * quant.nbytes + 2, 0xA5, np.uint8)
    quants.encode(name, values, row, weights, guarded[1:-1])
    assert guarded[0] == guarded[-1] == 0xA5
    return guarded[1:-1]


def check_golden(name: str, encoder: Encoder = encode) -> None:
    """The rows of the golden file, without and with their imatrix."""
    with np.load(GOLDEN) as golden:
        values, importance = golden["x"], golden["imatrix"]
        for key, weights in (("q", None), ("qi", importance)):
            found = encoder(name, values.ravel(), values.shape[1], weights)
            _same_blocks(name, f"golden {key}", golden[f"{key}.{name}"].ravel(), found)


def check_against_library(name: str, blocks: int = 100_000) -> None:
    """About so many blocks of every kind of data with every kind of imatrix, as ggml's own library makes them."""
    library = _library()
    quant = quants.QUANTS[name]
    rng = np.random.default_rng(20)
    kinds = [w for w in importances(ROW, rng) if w[1] is None or quant.imatrix]
    rows = blocks * quant.block // (ROW * len(kinds) * len(list(data(ROW, rng)))) + 1
    for importance, weights in kinds:
        for kind, values in data(rows * ROW, rng):
            wanted = library.encode(name, values, ROW, weights)
            _same_blocks(name, f"{kind}, imatrix {importance}", wanted, encode(name, values, ROW, weights))


def check_against_compiled(name: str, encoder: Encoder, rows: int = 2) -> None:
    """So many rows of every kind of data, hostile numbers too, with every kind of imatrix, as the compiled encoder
    makes them."""
    rng = np.random.default_rng(26)
    kinds = [*data(rows * ROW, rng), *hostile_data(rows * ROW, rng)]
    values = np.concatenate([kind for _, kind in kinds])
    for importance, weights in [*importances(ROW, rng), *hostile_importances(ROW, rng)]:
        wanted, found = (e(name, values, ROW, weights).reshape(len(kinds), -1) for e in (encode, encoder))
        for (kind, _), a, b in zip(kinds, wanted, found):
            _same_blocks(name, f"{kind}, imatrix {importance}", a, b)


def check_row_lengths(name: str, encoder: Encoder = encode) -> None:
    """Rows of one block, of an odd number of blocks, and a number of blocks that fills no vector."""
    library = _library()
    quant = quants.QUANTS[name]
    rng = np.random.default_rng(21)
    for row in (quant.block, 3 * quant.block, 35 * quant.block):
        values = rng.standard_normal(7 * row).astype(np.float32)
        for weights in (None, rng.random(row, np.float32)):
            for rows in (0, 1, 7):
                part = values[: rows * row]
                wanted = library.encode(name, part, row, weights)
                _same_blocks(name, f"{rows} rows of {row}", wanted, encoder(name, part, row, weights))


def check_divisions(name: str, encoder: Encoder = encode) -> None:
    """However rows are divided among calls and threads, the bytes are the same; arrays may be read-only."""
    block = quants.QUANTS[name].block
    rng = np.random.default_rng(24)
    values, weights = rng.standard_normal((37, 3 * block), np.float32), rng.random(3 * block, np.float32)
    values.flags.writeable = weights.flags.writeable = False
    whole = encoder(name, values.ravel(), 3 * block, weights)
    cuts = [(0, 1), (1, 3), (3, 20), (20, 37)]
    with ThreadPoolExecutor() as pool:
        parts = pool.map(lambda cut: encoder(name, values[slice(*cut)].ravel(), 3 * block, weights), cuts)
    _same_blocks(name, "divided", whole, np.concatenate(list(parts)))


def check_precision(name: str, limit: float) -> None:
    """Gaussian values come back within ``limit``, the root mean square of the error in units of their spread."""
    quant = quants.QUANTS[name]
    values = np.random.default_rng(25).standard_normal(64 * ROW).astype(np.float32)
    raw, back = encode(name, values, ROW, None), np.empty_like(values)
    raw.flags.writeable = False
    assert raw.size == values.size // quant.block * quant.nbytes
    quants.decode(name, raw, back)
    assert np.sqrt(np.mean((back - values) ** 2)) < limit


def check_decoder(name: str) -> None:
    """Random bytes and encoded values against the gguf package: the same bits, except that NaN is NaN."""
    quant = quants.QUANTS[name]
    rng = np.random.default_rng(22)
    encoded = [encode(name, values, ROW, None) for _, values in data(4 * ROW, rng)]
    raw = np.concatenate([rng.integers(0, 256, 2000 * quant.nbytes, dtype=np.uint8), *encoded])
    found = np.full(raw.size // quant.nbytes * quant.block, 7, np.float32)
    quants.decode(name, raw, found)
    with np.errstate(all="ignore"):
        wanted = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[name])
    assert not np.isnan(wanted).all()
    is_nan = np.isnan(wanted)
    assert np.array_equal(is_nan, np.isnan(found))
    assert np.array_equal(wanted[~is_nan].view(np.uint32), found[~is_nan].view(np.uint32))


def check_bad_block_stays_alone(name: str) -> None:
    """Infinity and NaN spoil their own block only."""
    quant = quants.QUANTS[name]
    rng = np.random.default_rng(23)
    clean = rng.standard_normal(40 * quant.block).astype(np.float32)
    wanted = encode(name, clean, quant.block, None).reshape(40, quant.nbytes)
    for bad in (np.inf, -np.inf, np.nan):
        for count in (1, quant.block):
            spoiled = clean.copy()
            spoiled[7 * quant.block : 7 * quant.block + count] = bad
            found = encode(name, spoiled, quant.block, None).reshape(40, quant.nbytes)
            assert np.array_equal(np.delete(found, 7, axis=0), np.delete(wanted, 7, axis=0))


def check_values(name: str, values: Floats) -> None:
    """Given whole blocks, without an imatrix, against ggml's own library."""
    block = quants.QUANTS[name].block
    wanted = _library().encode(name, values, block, None)
    _same_blocks(name, "given values", wanted, encode(name, values, block, None))


def data(count: int, rng: np.random.Generator) -> Iterator[tuple[str, Floats]]:
    """Kinds of values that weights have, and kinds that reach the corners of the algorithms."""

    def normal() -> Floats:
        return rng.standard_normal(count).astype(np.float32)

    def per_block(values: Any) -> Any:
        return np.repeat(values, 32)[:count]

    def per_sixteen(values: Any) -> Any:
        return np.repeat(values, 16)[:count]

    blocks, sixteens = count // 32, count // 16
    yield "normal", normal() * np.float32(0.02)
    yield "bf16", (normal().view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    yield "f16", normal().astype(np.float16).astype(np.float32)
    yield "uniform", rng.uniform(-1, 1, count).astype(np.float32)
    yield "heavy tails", rng.standard_t(2, count).astype(np.float32)
    yield "ternary", rng.integers(-1, 2, count).astype(np.float32) * np.float32(0.37)
    yield "halves", rng.integers(-20, 21, count).astype(np.float32) * np.float32(0.5)
    for peak, least, beyond in ((127, -4, 4), (1, -1, 1)):  # scales are 1: the halves are rounded as they are
        half = (rng.integers(least, beyond, count) + 0.5).astype(np.float32)
        nudged = half.view(np.int32) + rng.integers(-1, 2, count, dtype=np.int32)
        nudged[::32] = np.float32(peak).view(np.int32)
        yield f"beside halves up to {peak}", nudged.view(np.float32)
    yield "sparse", np.where(rng.random(count) < 0.05, normal(), np.float32(0))
    yield "constant", per_block(rng.standard_normal(blocks).astype(np.float32))
    yield "zero", np.zeros(count, np.float32)
    yield "zeros of both signs", np.where(rng.random(count) < 0.5, np.float32(-0.0), np.float32(0))
    zeros = rng.choice(np.array([0, -0.0], np.float32), count)
    yield "positive", np.where(rng.random(count) < 0.3, zeros, np.abs(normal()))
    yield "negative", np.where(rng.random(count) < 0.3, zeros, -np.abs(normal()))
    yield "scales by block", normal() * np.exp2(per_block(rng.integers(-30, 30, blocks))).astype(np.float32)
    yield "scales by 16", normal() * per_sixteen(10.0 ** rng.uniform(-12, 4, sixteens)).astype(np.float32)
    # Some sub-blocks are so much smaller than the others of their block that their scale becomes 0.
    yield "unlike sub-blocks", normal() * per_sixteen(10.0 ** rng.choice([-6, -3, -1, 0], sixteens)).astype(np.float32)
    yield "powers of two", (rng.choice([-1, 1], count) * 2.0 ** rng.integers(-60, 60, count)).astype(np.float32)
    yield "outliers", normal() * np.where(rng.random(count) < 0.005, np.float32(4), np.float32(0.02))
    yield "far from zero", (-5 - rng.random(count)).astype(np.float32)
    yield "scales by element", normal() * np.exp2(rng.integers(-12, 12, count)).astype(np.float32)
    for scale in (1e20, 1e4, 1e-12, 1e-15, 1e-20, 1e-38, 1e-40, 1e-44):
        yield f"{scale:g}", (rng.standard_normal(count) * scale).astype(np.float32)
    patterns = rng.integers(0, 0x7F800000, count, dtype=np.uint32) | (rng.integers(0, 2, count, dtype=np.uint32) << 31)
    yield "any finite pattern", patterns.astype(np.uint32).view(np.float32)


def importances(row: int, rng: np.random.Generator) -> Iterator[tuple[str, Floats | None]]:
    """No imatrix, and several that one could meet."""
    uniform = rng.random(row, np.float32)
    yield "none", None
    yield "uniform", uniform
    yield "heavy tails", np.exp(3 * rng.standard_normal(row)).astype(np.float32)
    yield "ones", np.ones(row, np.float32)
    yield "zeros", np.zeros(row, np.float32)
    yield "mostly zero", np.where(rng.random(row) < 0.1, uniform, np.float32(0))
    yield "tiny", uniform * np.float32(1e-20)
    yield "huge", uniform * np.float32(1e15)


def hostile_data(count: int, rng: np.random.Generator) -> Iterator[tuple[str, Floats]]:
    """Finite numbers whose sums and scales overflow or vanish."""
    largest = float(np.finfo(np.float32).max)
    for scale in (1e38, 1e30, 1e10):
        yield f"{scale:g}", (rng.standard_normal(count) * scale).clip(-largest, largest).astype(np.float32)
    yield "subnormal", rng.integers(0, 2**23, count, dtype=np.uint32).view(np.float32)
    ends = np.array([largest, -largest, 1e-38, 1e-45, -1e-45, 0, -0.0], np.float32)
    yield "ends", rng.choice(ends, count)
    yield "constant ends", np.repeat(rng.choice(ends, count // 32), 32)
    yield "one end", np.where(rng.random(count) < 0.01, rng.choice(ends, count), rng.standard_normal(count, np.float32))


def hostile_importances(row: int, rng: np.random.Generator) -> Iterator[tuple[str, Floats]]:
    """Finite numbers with which sums overflow or vanish."""
    for scale in (3e38, 1e30, 1e-44):
        yield f"{scale:g}", (rng.random(row) * scale).astype(np.float32)
    yield "one huge", np.where(rng.random(row) < 0.01, 3e38, 1).astype(np.float32)


def beside_middles_of_mxfp4() -> Floats:
    """Blocks of MXFP4 at every scale, of the middles between two of its numbers and what is beside them."""
    rng = np.random.default_rng(0)
    middles = np.array([0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2, 2.5, 3, 3.5, 4, 5, 6], np.float32)
    chosen = middles[rng.integers(0, middles.size, (276, 40, 32))]
    beside = np.nextafter(chosen, np.float32(1) * rng.choice([0, 9], chosen.shape).astype(np.float32))
    values = np.where(rng.random(chosen.shape) < 0.3, chosen, beside) * rng.choice([-1, 1], chosen.shape)
    with np.errstate(under="ignore"):
        scaled: Floats = np.ldexp(values, np.arange(-150, 126)[:, None, None]).astype(np.float32)
    return scaled.ravel()


def peaks_beside_powers_of_two() -> Floats:
    """Blocks of 32 with one element that is not 0: each number just below and above each power of two."""
    exponents = np.arange(256, dtype=np.uint32)[:, None] << 23
    mantissas = np.concatenate([np.arange(3), np.arange(2**23 - 300, 2**23)]).astype(np.uint32)
    subnormals = [np.arange(max(1, 2**k - 80), 2**k + 3, dtype=np.uint32) for k in range(24)]
    patterns = np.concatenate([(exponents | mantissas).ravel(), *subnormals])
    peaks = patterns[patterns <= 0x7F800000].view(np.float32)
    values = np.zeros((peaks.size, 32), np.float32)
    values[:, 5] = peaks
    return values.ravel()


def _same_blocks(name: str, what: str, wanted: Bytes, found: Bytes) -> None:
    size = quants.QUANTS[name].nbytes
    a, b = wanted.reshape(-1, size), found.reshape(-1, size)
    differing = np.flatnonzero((a != b).any(axis=1))
    if differing.size:
        i = differing[0]
        first = f"block {i}: wanted {a[i].tobytes().hex()}, found {b[i].tobytes().hex()}"
        raise AssertionError(f"{name}, {what}: {differing.size} of {len(a)} blocks differ; {first}")


def _library() -> Ggml:
    try:
        return load_ggml()
    except GgmlMissingError as error:
        pytest.skip(str(error))
