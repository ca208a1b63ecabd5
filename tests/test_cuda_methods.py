"""Every method with the torch backend, several blocks at once, against Numba block after block: states and bits."""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from streammerge.inspection.observing import Observing
from streammerge.kernels.contract import BLOCK, Block
from streammerge.kernels.load import load_cpu
from streammerge.methods import METHODS, build_method
from streammerge.methods.base import Extent
from streammerge.tree import Tree
from tests.checks import check_same_bits
from tests.kernels_on_torch import load_torch

ELEMENTS = 3 * BLOCK + 4_321
TOGETHER = [slice(0, 2), slice(2, 3), 3]  # as ``Block.index``: two blocks, one with an axis of blocks, the odd tail
APART = [0, 1, 2, 3]


def weights(agents):
    return [1.5 - 0.4 * agent for agent in range(agents)]


def densities(agents):
    return np.resize([0.3, 1.0, 0.0, 0.05], agents).tolist()


PARAMETERS = {
    "ram": [{}, {"epsilon": 0.0}, {"epsilon": 3e-3}],
    "ram+": [{}, {"r": 0.7, "alpha": 2.5, "epsilon": 1e-3}],
    "ramplus_tl": [{}, {"r": 0.7, "alpha": 2.5, "epsilon": 0.0}],
    "linear": [{}, {"weight": weights, "normalize": False}],
    "task_arithmetic": [{}, {"weight": weights, "lambda": 0.7, "normalize": True}],
    "ties": [
        {},
        {"density": 0.2, "lambda": 0.8},
        {"density": densities, "weight": weights, "normalize": False},
        {"density": 0.9, "weight": weights},
    ],
    "dare_linear": [
        {},
        {"density": 0.4, "lambda": 0.8, "seed": 3},
        {"density": densities, "rescale": "inverse_density", "weight": weights, "normalize": True},
        {"density": 0.7, "rescale": "none"},
    ],
    "slerp": [{"t": 0.25}, {"t": 1.0}],
}
# Moves as fine-tuning makes them, and such that slerp takes the arc.
SIZES = [(1, 2.0**-11), (2, 2.0**-11), (3, 2.0**-5), (8, 2.0**-11)]
CASES = [(*size, name, parameters) for size in SIZES for name in METHODS for parameters in PARAMETERS[name]]
CASES += [(32, 2.0**-11, name, PARAMETERS[name][-1]) for name in METHODS]


def make_models(agents, moves):
    """Values of few bits, as bfloat16 has them, so that many differences are equal; half of them are none."""
    rng = np.random.default_rng(agents)
    base = (rng.standard_normal(ELEMENTS) * 0.05).astype(np.float32)
    base.view(np.uint32)[...] &= 0xFFFF0000
    base[rng.random(ELEMENTS) < 0.02] = -0.0
    steps = rng.integers(-4, 5, (agents, ELEMENTS)) * (rng.random((agents, ELEMENTS)) < 0.5)
    return base, base + (steps * np.float32(moves)).astype(np.float32)


@dataclass
class OneByOne:
    """Numba: arrays of the host, what is measured by block with the blocks first."""

    kernels: Any
    parts, axis = APART, 0

    def part(self, numbers, index):
        return numbers[index]

    def within(self):
        return nullcontext()

    def array(self, values):
        return values.copy()

    def host(self, values):
        return values


@dataclass
class Together:
    """torch: tensors of a device, with an axis of blocks before the last where ``index`` is a slice, and at the end of
    what is measured by block."""

    kernels: Any
    device: Any
    parts, axis = TOGETHER, -1

    def part(self, numbers, index):
        return numbers[..., index]

    def within(self):
        from tests.formats.strange_device import StrangeDevice

        return StrangeDevice() if self.device.type == "cpu" else nullcontext()

    def array(self, values):
        import torch

        return torch.from_numpy(values.copy()).to(self.device)

    def host(self, values):
        return values.cpu().numpy()


def block_of(backend, index, base, agents, tally):
    several = isinstance(index, slice)
    first, last = (index.start, index.stop) if several else (index, index + 1)
    place = slice(first * BLOCK, min(last * BLOCK, ELEMENTS))
    shape = (last - first, BLOCK) if several else (-1,)
    rows = backend.array(agents[:, place].reshape(len(agents), *shape))
    base = backend.array(base[place].reshape(shape))
    return Block("a.weight", index, place.start, base, rows, backend.array(np.full_like(base, 9)), tally), place


def measure(backend, step, state, base, agents):
    """One pass over the tensor, put together as the schedule does it."""
    shape, is_count = step.shape(len(agents)), step.kind == "counts"
    kind = np.float64 if step.kind == "sums" else np.int64
    numbers = np.zeros(shape if is_count else (len(APART), *shape), kind)
    numbers = backend.array(numbers if is_count else np.moveaxis(numbers, 0, backend.axis))
    unused = backend.array(np.zeros((len(agents), 2), np.int64))
    for index in backend.parts:
        block, _ = block_of(backend, index, base, agents, unused)
        with backend.within():
            step.block(backend.kernels, block, state, numbers if is_count else backend.part(numbers, index))
    measured = backend.host(numbers)
    if not is_count:
        measured = np.moveaxis(measured, backend.axis, 0)
    if step.kind == "sums":
        tree = Tree(step.combine)
        for number, row in enumerate(measured):
            tree.add(number, row)
        measured = tree.total()
    return step.conclude(state, measured, Extent("a.weight", ELEMENTS, len(agents)))


def carry_out(backend, method, base, agents, blend=True):
    """The state after each pass, the result, the tally."""
    states, state = [], None
    for step in method.measures():
        if step.needed(state):
            state = measure(backend, step, state, base, agents)
            states.append(state)
    out, tally = np.zeros_like(base), backend.array(np.zeros((len(agents), 2), np.int64))
    for index in backend.parts if blend else ():
        block, place = block_of(backend, index, base, agents, tally)
        with backend.within():
            method.blend(backend.kernels, block, state)
        out[place] = backend.host(block.out).reshape(-1)
    return states, out, backend.host(tally)


def check_same_state(found, wanted):
    if hasattr(wanted, "__dataclass_fields__"):
        for name in wanted.__dataclass_fields__:
            check_same_state(getattr(found, name), getattr(wanted, name))
    elif wanted is None:
        assert found is None
    else:
        check_same_bits(np.asarray(found), np.asarray(wanted))


def check_same_run(device, method, base, agents, blend=True):
    wanted = carry_out(OneByOne(load_cpu()), method, base, agents, blend)
    found = carry_out(Together(*load_torch(device)), method, base, agents, blend)
    assert len(found[0]) == len(wanted[0])
    for state, its_state in zip(found[0], wanted[0]):
        check_same_state(state, its_state)
    check_same_bits(found[1], wanted[1], "result")
    np.testing.assert_array_equal(found[2], wanted[2])
    return found[0]


@pytest.fixture(scope="module")
def models():
    kept = {}

    def find(agents, moves):
        if (agents, moves) not in kept:
            kept.clear()
            kept[agents, moves] = make_models(agents, moves)
        return kept[agents, moves]

    return find


@pytest.mark.parametrize(("agents", "moves", "name", "parameters"), CASES)
def test_a_method(device, models, agents, moves, name, parameters):
    agents = min(agents, METHODS[name].max_agents)
    given = {key: value(agents) if callable(value) else value for key, value in parameters.items()}
    states = check_same_run(device, build_method(name, given, agents), *models(agents, moves))
    if parameters.get("density") == 0.2:
        assert len(states) == (3 if name == "ties" else 1)  # the quota of each block was needed


@pytest.mark.parametrize(("agents", "moves"), SIZES)
def test_what_is_observed(device, models, agents, moves):
    check_same_run(device, Observing(agents=agents), *models(agents, moves), blend=False)
