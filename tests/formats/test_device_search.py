"""The searches that improve one code after another, in torch, against the compiled ones, on numbers that whole blocks
rarely or never make of weights: what they must do then decides few bytes, but it is all in ggml."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from streammerge.formats.device import refinement  # noqa: E402
from streammerge.formats.jit import jit  # noqa: E402
from streammerge.formats.quants import search  # noqa: E402
from streammerge.formats.quants.lanes import LANES  # noqa: E402
from streammerge.formats.quants.memory import store  # noqa: E402

GROUPS = 1000
LARGEST = np.finfo(np.float32).max


@jit("void(float32[:,:,::1], float32[:,:,::1], int32[:,:,::1], float32[:,::1], int64)")
def compiled_positive(x, w, codes, scales, top):
    for group in range(x.shape[0]):
        store(scales, group, search.positive(x[group], w[group], codes[group], x.shape[1], top))


@jit("void(float32[:,:,::1], float32[:,:,::1], float32[:,::1])")
def compiled_refined(x, codes, scales):
    sums = np.empty((2, LANES), np.float32)
    for group in range(x.shape[0]):
        scale = scales[group : group + 1]
        search.refined(x[group], codes[group], sums, scale, 0, 1, x.shape[1])


def numbers(rng, shape):
    """Lanes with numbers of one magnitude each, among them zeros and ends of the range."""
    scales = 10.0 ** rng.choice([0, 0, 0, 1, -3, -15, -20, -40, 19, 30, 38], (shape[0], 1, shape[2]))
    values = rng.standard_normal(shape) * scales
    ends = rng.choice([0, -0.0, 1e-15, 1e-45, LARGEST], shape)
    odds = rng.choice([0, 0, 0.3], (shape[0], 1, shape[2]))
    return np.where(rng.random(shape) < odds, ends, values.clip(-LARGEST, LARGEST)).astype(np.float32)


def lanes(groups, device):
    """(groups, count, LANES) as the (count, lanes) of the searches in torch."""
    return torch.from_numpy(groups.transpose(1, 0, 2).reshape(groups.shape[1], -1)).to(device)


def same(wanted, found):
    found = found.cpu().numpy()
    return np.array_equal(wanted.transpose(1, 0, 2).reshape(found.shape), found, equal_nan=True)


@pytest.mark.parametrize(("count", "top"), [(8, 63), (16, 15)])
def test_positive(device, count, top):
    rng = np.random.default_rng(count)
    shape = (GROUPS, count, LANES)
    x, w = numbers(rng, shape), np.abs(numbers(rng, shape))
    odds = rng.choice([0, 0, 0.1, 0.5], (GROUPS, 1, LANES))
    x = np.where(rng.random(shape) < odds, x, np.abs(x))
    w[rng.random(shape) < odds.take(rng.permutation(GROUPS), axis=0)] = rng.choice([0, np.inf])
    codes, scales = np.empty(shape, np.int32), np.empty((GROUPS, LANES), np.float32)
    compiled_positive(x, w, codes, scales, top)
    scale, levels = refinement.positive(lanes(x, device).unsqueeze(1), lanes(w, device).unsqueeze(1), top)
    assert same(codes, levels[:, 0])
    assert same(scales[:, None], scale)


def test_refined(device):
    rng = np.random.default_rng(0)
    x = numbers(rng, (GROUPS, 16, LANES))
    codes, scales = np.empty_like(x), np.empty((GROUPS, LANES), np.float32)
    compiled_refined(x, codes, scales)
    scale, levels = refinement.refined(lanes(x, device))
    assert same(codes, levels + 4)
    assert same(scales[:, None], scale.unsqueeze(0))
