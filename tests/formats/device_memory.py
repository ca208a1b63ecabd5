"""How much memory torch code takes on top of its arguments: the storages that live at once, whatever the device."""

from collections.abc import Callable
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

SLACK = 4096  # bytes: constants that are made at the first call, and results of one element


class LiveStorages(TorchDispatchMode):
    """Follows the storages made while it is active; ``peak`` is the most bytes that lived at once.

    What an operation takes for itself while it runs is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, function: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        theirs = {key for key, _ in _storages((args, kwargs))}
        self._live = {key: kept for key, kept in self._live.items() if not kept[0].expired()}
        for key, storage in _storages(result):
            if key not in theirs:
                self._live[key] = StorageWeakRef(storage), storage.nbytes()
        self.peak = max(self.peak, sum(size for _, size in self._live.values()))
        return result


def _storages(tree: Any) -> list[tuple[int, torch.UntypedStorage]]:
    storages = [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
    return [(storage._cdata, storage) for storage in storages]


def peak_bytes(function: Callable[..., Any], *args: Any) -> int:
    """The peak of a call, arguments not counted."""
    with LiveStorages() as storages:
        function(*args)
    return storages.peak


def check_bound(bound: int, elements: int, peak: int) -> None:
    """``bound`` bytes an element are enough, and no more than 1.3 times what was taken."""
    assert peak <= bound * elements + SLACK, f"{peak / elements:.2f} bytes an element, bound {bound}"
    assert bound * elements <= 1.3 * peak + SLACK, f"{peak / elements:.2f} bytes an element, bound {bound}"
