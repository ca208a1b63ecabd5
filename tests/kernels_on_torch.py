"""The torch backend behind numpy arrays, so that tests of the primitives need not know which backend they have."""

from functools import partial
from inspect import signature

import numpy as np
import pytest

from tests.checks import check_same_bits

ELEMENTS = {"base", "agents", "rows", "row", "deltas", "merged", "x", "y", "out"}
MEASURED = {"tally", "counts", "sums", "whole", "by_count", "by_agent", "by_pair"}
OVERWRITTEN = {"count_changes": "agents", "ram": "agents", "ram_divide_first": "agents", "sign_consensus": "deltas"}
IN_PLACE = {"subtract_base": "agents", "keep_largest": "rows", "keep_random": "rows", "scale_rows": "rows"}


def load_torch(name):
    """The backend and a device; skips where either is missing."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    from streammerge.kernels.cuda import Torch

    torch.set_num_threads(1)  # tests are small: threads would wait for each other most of the time
    return Torch(torch.device(name)), torch.device(name)


def filled(primitive):
    """The names of what a primitive fills."""
    return {"out", IN_PLACE.get(primitive)} | MEASURED


class OnTorch:
    """Copies the arrays that a primitive takes to the device, and back what it fills; the rest must be as it was."""

    def __init__(self, device):
        self._kernels, self._device = load_torch(device)

    def __getattr__(self, name):
        return partial(self._call, name, getattr(self._kernels, name))

    def _call(self, name, primitive, *arguments):
        import torch

        named = dict(zip(signature(primitive).parameters, arguments, strict=True))
        arrays = {id(a): a for key, a in named.items() if key in ELEMENTS | MEASURED}
        tensors = {key: torch.from_numpy(np.array(a)).to(self._device) for key, a in arrays.items()}
        primitive(*(tensors.get(id(argument), argument) for argument in arguments))
        results = {id(named[key]) for key in filled(name) & named.keys()}
        for key in named.keys() & (ELEMENTS | MEASURED):
            array, found = named[key], tensors[id(named[key])].cpu().numpy()
            if id(array) in results:
                array[...] = found
            elif key != OVERWRITTEN.get(name):
                check_same_bits(found, np.asarray(array), key)
