"""What every quantized type must satisfy. A family's test file names its types and calls these checks.

Three references: rows that ``llama-quantize``'s library made (golden file), the library itself where llama_cpp is
installed, and the decoders of the gguf package.
"""

import ctypes
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from streammerge.formats import quants

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

GOLDEN = Path(__file__).parents[1] / "fixtures" / "golden" / "ggml_quants.npz"
ROW = 512


def check_golden(name: str) -> None:
    """The rows of the golden file, without and with their imatrix."""
    with np.load(GOLDEN) as golden:
        values, importance = golden["x"], golden["imatrix"]
        for key, weights in (("q", None), ("qi", importance)):
            found = encode(name, values.ravel(), values.shape[1], weights)
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
            wanted = _encode_with_library(library, name, values, ROW, weights)
            _same_blocks(name, f"{kind}, imatrix {importance}", wanted, encode(name, values, ROW, weights))


def check_row_lengths(name: str) -> None:
    """Rows of one block, of an odd number of blocks, and a number of blocks that fills no vector."""
    library = _library()
    quant = quants.QUANTS[name]
    rng = np.random.default_rng(21)
    for row in (quant.block, 3 * quant.block, 35 * quant.block):
        values = rng.standard_normal(7 * row).astype(np.float32)
        for weights in (None, rng.random(row, np.float32)):
            for rows in (0, 1, 7):
                part = values[: rows * row]
                wanted = _encode_with_library(library, name, part, row, weights)
                _same_blocks(name, f"{rows} rows of {row}", wanted, encode(name, part, row, weights))


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
    wanted = _encode_with_library(_library(), name, values, block, None)
    _same_blocks(name, "given values", wanted, encode(name, values, block, None))


def encode(name: str, values: Floats, row: int, weights: Floats | None) -> Bytes:
    """Blocks into an array that was not zero before and has a byte too many on either side, which must stay."""
    quant = quants.QUANTS[name]
    guarded = np.full(values.size // quant.block * quant.nbytes + 2, 0xA5, np.uint8)
    quants.encode(name, values, row, weights, guarded[1:-1])
    assert guarded[0] == guarded[-1] == 0xA5
    return guarded[1:-1]


def data(count: int, rng: np.random.Generator) -> Iterator[tuple[str, Floats]]:
    """Kinds of values that weights have, and kinds that reach the corners of the algorithms."""

    def normal() -> Floats:
        return rng.standard_normal(count).astype(np.float32)

    def per_block(values: Any) -> Any:
        return np.repeat(values, 32)[:count]

    blocks = count // 32
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


def _same_blocks(name: str, what: str, wanted: Bytes, found: Bytes) -> None:
    size = quants.QUANTS[name].nbytes
    a, b = wanted.reshape(-1, size), found.reshape(-1, size)
    differing = np.flatnonzero((a != b).any(axis=1))
    if differing.size:
        i = differing[0]
        first = f"block {i}: wanted {a[i].tobytes().hex()}, found {b[i].tobytes().hex()}"
        raise AssertionError(f"{name}, {what}: {differing.size} of {len(a)} blocks differ; {first}")


@cache
def _library() -> Any:
    package = find_spec("llama_cpp")
    if package is None or package.origin is None:
        pytest.skip("llama_cpp is not installed: no library of ggml's to compare with")
    (file,) = (Path(package.origin).parent / "lib").glob("libggml-base.so")
    library = ctypes.CDLL(str(file))
    integer, pointer = ctypes.c_int64, ctypes.c_void_p
    library.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, integer, integer, integer, pointer]
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    return library


def _encode_with_library(library: Any, name: str, values: Floats, row: int, weights: Floats | None) -> Bytes:
    quant = quants.QUANTS[name]
    out = np.zeros(values.size // quant.block * quant.nbytes, np.uint8)
    kind = int(gguf.GGMLQuantizationType[name])
    values = np.ascontiguousarray(values)
    importance = None if weights is None else weights.ctypes.data
    rows = values.size // row
    written = library.ggml_quantize_chunk(kind, values.ctypes.data, out.ctypes.data, 0, rows, row, importance)
    assert written == out.size
    return out
