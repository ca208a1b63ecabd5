"""K-quants against ggml: golden rows, the library itself where there is one, and the decoders of the gguf package."""

import ctypes
import importlib.util
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from streammerge.formats.quants import k

Array = NDArray[Any]

BLOCK = 256
ROW = 2048
# Bytes of a block, number of the type in ggml.
TYPES = {"Q2_K": (84, 10), "Q3_K": (110, 11), "Q4_K": (144, 12), "Q5_K": (176, 13), "Q6_K": (210, 14)}
GOLDEN = Path(__file__).parents[1] / "fixtures" / "golden" / "ggml_quants.npz"


def encode(name: str, values: Array, row: int, weights: Array | None = None) -> Array:
    """The blocks of ``values``, one in each row."""
    out = np.full(values.size // BLOCK * TYPES[name][0], 0xA5, np.uint8)
    getattr(k, f"encode_{name.lower()}")(values, row, weights, out)
    return out.reshape(-1, TYPES[name][0])


def decode(name: str, blocks: Array) -> Array:
    out = np.full(blocks.shape[0] * BLOCK, np.nan, np.float32)
    getattr(k, f"decode_{name.lower()}")(blocks.reshape(-1), out)
    return out


def assert_same_blocks(found: Array, wanted: Array) -> None:
    different = np.flatnonzero((found != wanted).any(axis=1))
    assert not different.size, f"{different.size} of {len(wanted)} blocks differ, the first is {different[0]}"


# Data: what weights look like, and what makes a search degenerate.

Generator = np.random.Generator


def gaussian(rng: Generator, n: int) -> Array:
    return rng.standard_normal(n) * 0.02


def mixed_scales(rng: Generator, n: int) -> Array:
    return rng.standard_normal(n) * np.repeat(10.0 ** rng.uniform(-12, 4, n // 16), 16)


def sub_blocks_unlike(rng: Generator, n: int) -> Array:
    """Some sub-blocks thousands of times smaller than the others: their scale becomes 0."""
    return rng.standard_normal(n) * np.repeat(10.0 ** rng.choice([-6, -3, -1, 0], n // 16), 16)


def powers(rng: Generator, n: int) -> Array:
    return rng.choice([-1, 1], n) * 2.0 ** rng.integers(-60, 60, n)


def sparse(rng: Generator, n: int) -> Array:
    return rng.standard_normal(n) * (rng.random(n) < np.repeat(rng.choice([0, 0.01, 0.1, 0.5], n // 64), 64))


DATA: dict[str, Callable[[Generator, int], Array]] = {
    "gaussian": gaussian,
    "bfloat16": lambda rng, n: (gaussian(rng, n).astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32),
    "float16": lambda rng, n: gaussian(rng, n).astype(np.float16),
    "ternary": lambda rng, n: rng.integers(-1, 2, n) * 0.3,
    "grid": lambda rng, n: rng.integers(-8, 9, n) * 0.125,
    "sparse": sparse,
    "constant": lambda rng, n: np.repeat(rng.standard_normal(n // 16), 16),
    "zero": lambda rng, n: np.where(rng.random(n) < 0.5, 0.0, -0.0),
    "positive": lambda rng, n: rng.exponential(size=n),
    "negative": lambda rng, n: -5 - rng.random(n),
    "outliers": lambda rng, n: gaussian(rng, n) * np.where(rng.random(n) < 0.005, 200, 1),
    "mixed scales": mixed_scales,
    "unlike sub-blocks": sub_blocks_unlike,
    "powers of two": powers,
    "tiny": lambda rng, n: rng.standard_normal(n) * 1e-12,
    "at the limit": lambda rng, n: rng.standard_normal(n) * 1e-15,
    "large": lambda rng, n: rng.standard_normal(n) * 1e4,
    "1e-20": lambda rng, n: rng.standard_normal(n) * 1e-20,
    "1e20": lambda rng, n: rng.standard_normal(n) * 1e20,
    "subnormal": lambda rng, n: rng.standard_normal(n) * 1e-40,
}

WEIGHTS: dict[str, Callable[[Generator], Array | None]] = {
    "none": lambda rng: None,
    "uniform": lambda rng: rng.random(ROW),
    "activations": lambda rng: rng.standard_normal(ROW) ** 2 * 10.0 ** rng.uniform(-3, 3, ROW),
    "many zeros": lambda rng: rng.random(ROW) * (rng.random(ROW) < 0.2),
    "zeros": lambda rng: np.zeros(ROW),
    "one": lambda rng: np.ones(ROW),
}


def sample(name: str, blocks: int, seed: int = 0) -> Array:
    with np.errstate(under="ignore"):
        return DATA[name](np.random.default_rng(seed), blocks * BLOCK).astype(np.float32)


def importance(name: str, seed: int = 1) -> Array | None:
    weights = WEIGHTS[name](np.random.default_rng(seed))
    return None if weights is None else weights.astype(np.float32)


@pytest.fixture(scope="module")
def golden() -> Any:
    with np.load(GOLDEN) as file:
        return dict(file)


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("has_weights", [False, True])
def test_golden_rows(name: str, has_weights: bool, golden: Any) -> None:
    values, weights = golden["x"], golden["imatrix"]
    wanted = golden[("qi." if has_weights else "q.") + name].reshape(-1, TYPES[name][0])
    assert_same_blocks(encode(name, values.reshape(-1), values.shape[1], weights if has_weights else None), wanted)


@pytest.fixture(scope="module")
def ggml() -> Callable[..., Array]:
    found = importlib.util.find_spec("llama_cpp")
    folders = list(found.submodule_search_locations or []) if found else []
    libraries = [path for folder in folders for path in Path(folder).glob("lib/libggml-base.so")]
    if not libraries:
        pytest.skip("llama-cpp-python, whose ggml is the reference, is not installed")
    quantize = ctypes.CDLL(str(libraries[0])).ggml_quantize_chunk
    quantize.restype = ctypes.c_size_t
    quantize.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]

    def reference(name: str, values: Array, row: int, weights: Array | None = None) -> Array:
        size, number = TYPES[name]
        out = np.zeros((values.size // BLOCK, size), np.uint8)
        address = None if weights is None else weights.ctypes.data
        written = quantize(number, values.ctypes.data, out.ctypes.data, 0, values.size // row, row, address)
        assert written == out.size
        return out

    return reference


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("name", TYPES)
def test_the_library_itself(name: str, weights: str, ggml: Callable[..., Array]) -> None:
    blocks = 2048 if weights == "none" else 640
    values = np.concatenate([sample(data, blocks) for data in DATA])
    chosen = importance(weights)
    assert_same_blocks(encode(name, values, ROW, chosen), ggml(name, values, ROW, chosen))


@pytest.mark.parametrize("name", TYPES)
def test_lengths_and_divisions_change_nothing(name: str) -> None:
    """Any number of rows, in any division among calls and threads; blocks need not fill the vector lanes."""
    values, weights = sample("outliers", 37 * 3), np.float32(np.random.default_rng(2).random(3 * BLOCK))
    whole = encode(name, values, 3 * BLOCK, weights)
    cuts = [(0, 1), (1, 3), (3, 20), (20, 37)]
    with ThreadPoolExecutor() as pool:
        parts = pool.map(lambda cut: encode(name, values.reshape(37, -1)[slice(*cut)].ravel(), 768, weights), cuts)
    assert_same_blocks(np.concatenate(list(parts)), whole)
    assert_same_blocks(encode(name, values[:BLOCK], BLOCK), encode(name, values, BLOCK)[:1])


@pytest.mark.parametrize("name", TYPES)
def test_read_only_arrays(name: str) -> None:
    values, weights = sample("gaussian", 8), importance("uniform")
    assert weights is not None
    values.flags.writeable = weights.flags.writeable = False
    blocks = encode(name, values, ROW, weights)
    blocks.flags.writeable = False
    assert np.isfinite(decode(name, blocks)).all()


@pytest.mark.parametrize("name", TYPES)
def test_decoders_against_gguf(name: str) -> None:
    quants = pytest.importorskip("gguf.quants")
    kind = pytest.importorskip("gguf").GGMLQuantizationType[name]
    random = np.random.default_rng(3).integers(0, 256, (20_000, TYPES[name][0]), dtype=np.uint8)
    blocks = np.concatenate([random, encode(name, sample("mixed scales", 64), ROW)])
    with np.errstate(invalid="ignore", over="ignore"):  # some of the random scales are infinite or NaN
        wanted = quants.dequantize(blocks, kind).ravel()
    found = decode(name, blocks)
    assert ((found.view(np.uint32) == wanted.view(np.uint32)) | (np.isnan(found) & np.isnan(wanted))).all()


@pytest.mark.parametrize("name", TYPES)
def test_decoding_gives_about_the_weights_back(name: str) -> None:
    values = sample("gaussian", 64)
    limit = {"Q2_K": 0.35, "Q3_K": 0.2, "Q4_K": 0.1, "Q5_K": 0.05, "Q6_K": 0.025}[name]
    error = decode(name, encode(name, values, ROW)) - values
    assert np.sqrt(np.mean(error**2)) < limit * values.std()
