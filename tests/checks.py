"""What tests share: small checkpoints, made and read by the safetensors library, and comparisons to the bit."""

import json
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file

import streammerge

DTYPES = {"F32": np.float32, "BF16": ml_dtypes.bfloat16, "F16": np.float16, "F64": np.float64}
UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
_serial = count()


# --- checkpoints ----------------------------------------------------------------------------------------------------


def save_model(path, tensors, config=None):
    """One safetensors file; with a ``config`` a folder that holds it and config.json."""
    path = Path(path)
    tensors = {name: np.ascontiguousarray(values).reshape(np.shape(values)) for name, values in tensors.items()}
    if config is None:
        save_file(tensors, path.with_name(path.name + ".safetensors"))
        return path.with_name(path.name + ".safetensors")
    path.mkdir()
    save_file(tensors, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(config))
    return path


@dataclass
class Merged:
    """A finished merge: the tensors as the safetensors library reads them, the file's bytes, the report."""

    tensors: dict
    content: bytes
    report: object


def save_models(folder, base, agents, config=None):
    """A new folder below ``folder`` with the base and every agent; their paths."""
    folder = Path(folder) / f"models{next(_serial)}"
    folder.mkdir()
    paths = [save_model(folder / f"agent{number}", agent, config) for number, agent in enumerate(agents)]
    return save_model(folder / "base", base, config), paths


def merge_paths(base, agents, method, parameters=None, **options):
    """streammerge.merge into a file beside the base."""
    output = base.parent / f"merged{next(_serial)}.safetensors"
    report = streammerge.merge(base, agents, output, method=method, parameters=parameters or {}, **options)
    return Merged(load_file(output), output.read_bytes(), report)


def merge(folder, method, base, agents, parameters=None, *, config=None, **options):
    """Save these models below ``folder`` and merge them."""
    return merge_paths(*save_models(folder, base, agents, config), method, parameters, **options)


def make_base(rng, shape, dtype="F32"):
    """Weights of the usual size, some of them 0 and -0."""
    values = rng.standard_normal(shape) * 0.05
    values = np.where(rng.random(shape) < 0.02, 0.0, values)
    values = np.where(rng.random(shape) < 0.02, -0.0, values)
    return np.asarray(values).astype(DTYPES[dtype])


def make_agent(rng, base, share=0.3, sizes=(-6.5, -1.5)):
    """The base with a share of its weights moved by 10**sizes, bit for bit the same elsewhere."""
    shape = base.shape
    moves = rng.choice([-1.0, 1.0], shape) * 10.0 ** rng.uniform(*sizes, shape)
    moved = np.asarray(base.astype(np.float64) + moves).astype(base.dtype)
    return np.where(rng.random(shape) < share, moved, base).astype(base.dtype)


# --- comparisons ----------------------------------------------------------------------------------------------------


def bits(values):
    values = np.ascontiguousarray(values)
    return values.view(UNSIGNED[values.dtype.itemsize])


def _report(different, found, wanted, what):
    if np.any(different):
        place = int(np.flatnonzero(different)[0])
        raise AssertionError(
            f"{what}: {np.count_nonzero(different)} of {different.size} differ, first at flat index {place}: "
            f"found {np.ravel(found)[place]!r}, wanted {np.ravel(wanted)[place]!r}"
        )


def check_same_bits(found, wanted, what="values"):
    """Same type, shape and bits: -0 is not 0, and one NaN is not another."""
    assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape), what
    _report((bits(found) != bits(wanted)).ravel(), found, wanted, what)


def check_same_numbers(found, wanted, what="values"):
    """Same type, shape and numbers: -0 is 0, and NaN is NaN."""
    assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape), what
    both_nan = np.isnan(found) & np.isnan(wanted)
    _report(((found != wanted) & ~both_nan).ravel(), found, wanted, what)


def check_close(found, wanted, tolerance, what="values"):
    """|found - wanted| <= tolerance, which may be an array; compared in float64."""
    assert found.shape == wanted.shape, what
    distance = np.abs(np.asarray(found).astype(np.float64) - np.asarray(wanted).astype(np.float64))
    _report(~(distance <= tolerance).ravel(), found, wanted, what)


def check_same_model(found, wanted, check=check_same_bits):
    assert found.keys() == wanted.keys()
    for name in wanted:
        check(found[name], wanted[name], name)
