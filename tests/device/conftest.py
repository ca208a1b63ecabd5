"""Merges that are done twice: by Numba, and by torch on its CPU device or, marked ``cuda``, on a GPU."""

import numpy as np
import pytest

from tests.checks import DTYPES, save_models

torch = pytest.importorskip("torch", reason="torch is not installed")
torch.set_num_threads(1)  # workers are threads already


@pytest.fixture
def placed(device):
    """What ``device=`` is for the torch device that a test runs on."""
    return "torch:cpu" if device.type == "cpu" else "cuda:0"


@pytest.fixture(autouse=True)
def _small_tensors_too(monkeypatch):
    """Tensors of a few weights take the way to the device as well."""
    monkeypatch.setattr("streammerge.device.worker.SMALL", 1)


def weights(rng, dtype, *shape):
    values = rng.standard_normal(shape) * 0.05
    values.flat[:: max(values.size // 7, 1)] = 0.0
    return values.astype(DTYPES[dtype])


def moved(rng, base, share=0.3):
    """An agent: a part of the base changed by a little, a part of that far away."""
    changed = base.astype(np.float64)
    places = rng.random(base.shape) < share
    changed[places] += rng.choice([1e-3, -1e-3, 0.25, 1e-6], places.sum())
    return changed.astype(base.dtype)


@pytest.fixture(scope="session")
def models_of(tmp_path_factory):
    """``models_of(dtype, agents)``: base and agents with a tensor of three blocks and some, and small ones."""
    made = {}

    def make(dtype, agents):
        if (dtype, agents) not in made:
            rng = np.random.default_rng(agents)
            base = {
                "long": weights(rng, dtype, 331, 643),
                "whole": weights(rng, dtype, 256, 256),
                "odd": weights(rng, dtype, 77),
                "none": weights(rng, dtype, 0, 4),
            }
            others = [{name: moved(rng, values) for name, values in base.items()} for _ in range(agents)]
            made[dtype, agents] = save_models(tmp_path_factory.mktemp("device"), base, others)
        return made[dtype, agents]

    return make
