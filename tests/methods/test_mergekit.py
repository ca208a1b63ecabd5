"""Parity with mergekit 0.1.5 in float32: against what it made of the same checkpoints (scripts/record_mergekit.py).

Equal to the bit but for the sign of zero, with exceptions that have a bound:

* ram: we add the shared deltas and divide once, as the paper's authors do; mergekit divides each and adds. With
  one delta there is no difference, and dividing by two is exact. For three, either way makes at most three
  roundings of at most 2^-24 of the sum of the magnitudes S, one of them three times, on a third of it: the merged
  deltas differ by at most 2 x 2^-24 S. Adding them to the base rounds each result once more.
* linear: mergekit accumulates with fused multiply-adds, we round each product: 2 units in the last place of the
  weighted mean of the magnitudes (of the result itself, where weights do not cancel).
* slerp and linear where no agent changed a weight: we keep the base's bits, mergekit rounds (1 - t) x + t x.
"""

import importlib.util

import numpy as np
import pytest

from scripts.record_mergekit import (
    FIXTURE,
    RECORDINGS,
    fingerprint,
    flat_bits,
    make_models,
    mergekit_yaml,
    run_mergekit,
    unpack,
    write_models,
)
from tests.checks import check_close, check_same_bits, check_same_numbers, merge_paths

EXACT = [name for name, own in RECORDINGS.items() if own.method not in ("ram", "linear", "slerp")]


@pytest.fixture(scope="module")
def models():
    return make_models()


@pytest.fixture(scope="module")
def recorded():
    with np.load(FIXTURE) as stored:
        return dict(stored)


@pytest.fixture(scope="module")
def folder(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mergekit")
    write_models(folder, models)
    return folder


@pytest.fixture(scope="module")
def compare(models, recorded, folder):
    """(ours, mergekit's) of one recording: all weights in a row."""

    def both(name):
        recording = RECORDINGS[name]
        agents = [folder / agent / "model.safetensors" for agent in recording.agents]
        found = merge_paths(folder / "base" / "model.safetensors", agents, recording.method, recording.parameters)
        theirs = unpack(recorded[name]) ^ flat_bits(models["base"])
        return flat_bits(found.tensors).view(np.float32), theirs.view(np.float32)

    return both


def weights(models, name):
    return flat_bits(models[name]).view(np.float32)


def ulp(values):
    return np.spacing(np.abs(values)).astype(np.float64)


def test_the_recordings_belong_to_these_checkpoints(models, recorded):
    assert str(recorded["inputs"]) == fingerprint(models)
    assert str(recorded["mergekit"]) == "0.1.5"


@pytest.mark.parametrize("name", EXACT)
def test_equal_to_the_bit(compare, name):
    ours, theirs = compare(name)
    check_same_numbers(ours, theirs, name)


@pytest.mark.parametrize("name", ["slerp", "slerp_beyond_half"])
def test_slerp_on_the_straight_line(models, compare, name):
    ours, theirs = compare(name)
    base = weights(models, "base")
    unchanged = weights(models, *RECORDINGS[name].agents) == base
    check_same_numbers(ours[~unchanged], theirs[~unchanged], name)
    check_same_bits(ours[unchanged], base[unchanged], name)
    check_close(ours[unchanged], theirs[unchanged], ulp(base[unchanged]), name)


def test_ram(models, compare):
    ours, theirs = compare("ram")
    base = weights(models, "base")
    deltas = np.stack([weights(models, name) - base for name in RECORDINGS["ram"].agents])
    changed = np.abs(deltas) > np.float32(1e-5)
    count = changed.sum(axis=0)
    assert np.bincount(count, minlength=4).min() > 300
    check_same_numbers(ours[count < 3], theirs[count < 3])
    total = np.where(changed, np.abs(deltas), 0).sum(axis=0, dtype=np.float64)
    check_close(ours, theirs, 2.0**-23 * total + ulp(theirs))


def test_linear(models, compare):
    ours, theirs = compare("linear")
    own = RECORDINGS["linear"]
    agents = np.stack([weights(models, name) for name in own.agents])
    magnitudes = np.average(np.abs(agents), axis=0, weights=own.parameters["weight"]).astype(np.float32)
    check_close(ours, theirs, 2 * ulp(magnitudes))


def test_slerp_on_the_arc(compare):
    """mergekit takes the angle in float32, we in float64."""
    ours, theirs = compare("slerp_spherical")
    check_close(ours, theirs, 1e-6 * np.abs(theirs).max())


@pytest.mark.skipif(importlib.util.find_spec("mergekit") is None, reason="mergekit is not installed")
def test_mergekit_makes_today_what_was_recorded(models, recorded, folder, tmp_path):
    live = run_mergekit(mergekit_yaml(RECORDINGS["ties"], folder), tmp_path / "live")
    recorded_bits = unpack(recorded["ties"]) ^ flat_bits(models["base"])
    check_same_numbers(flat_bits(live).view(np.float32), recorded_bits.view(np.float32))
