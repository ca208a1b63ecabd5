"""A torch device as chunks see it: streams for the way there, the work and the way back, and pinned memory."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from math import prod
from typing import Any

import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import DeviceError
from ..formats.contract import Bytes
from ..kernels.contract import BLOCK
from .placement import CONTEXT

_cuda: Any = torch.cuda  # not all of it is annotated
_PORTABLE = 1  # cudaHostRegisterPortable: for every device


def open_device(name: str) -> torch.device:
    """The device called "cuda", "cuda:1" or "torch:cpu". Raises DeviceError saying what is missing."""
    if name == "torch:cpu":
        return torch.device("cpu")
    if torch.version.cuda is None and torch.version.hip is None:
        raise DeviceError(
            f"--device {name}: torch {torch.__version__} is a build without CUDA; install one with it "
            "(https://pytorch.org/get-started), or use --device cpu"
        )
    if not _cuda.is_available():
        raise DeviceError(f"--device {name}: torch finds no CUDA device; check nvidia-smi, or use --device cpu")
    number = int(name.partition(":")[2] or _cuda.current_device())
    if number >= _cuda.device_count():
        raise DeviceError(f"--device {name}: there are {_cuda.device_count()} CUDA devices, counted from 0")
    return torch.device("cuda", number)


def device_name(device: torch.device) -> str:
    """What ``open_device`` opened, with its number."""
    return "torch:cpu" if device.type == "cpu" else str(device)


@contextmanager
def named_errors(name: str) -> Iterator[None]:
    """Whatever torch reports becomes a DeviceError of one line."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise DeviceError(
            f"{name}: the device has too little free memory even for the shortest runs; close what else uses it, give "
            "fewer --threads or less --max-vram, or use --device cpu"
        ) from error
    except RuntimeError as error:  # torch has no other kind
        what = (str(error).splitlines() or [type(error).__name__])[0]
        raise DeviceError(f"{name}: the device failed: {what:.300}; try again, or go on with --device cpu") from error


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a device, with what CUDA itself has taken of them already."""
    if device.type == "cpu":
        return psutil.virtual_memory().available
    return int(_cuda.mem_get_info(device)[0]) + CONTEXT


def hold_to(device: torch.device, allowed: int) -> None:
    """Let torch allocate no more on a CUDA device than is left of so many bytes beside CUDA itself."""
    if device.type == "cuda":
        _cuda.reset_peak_memory_stats(device)
        total = _cuda.mem_get_info(device)[1]
        _cuda.set_per_process_memory_fraction(min(max((allowed - CONTEXT) / total, 0.0), 1.0), device)


def let_go(device: torch.device) -> None:
    """Give back what torch keeps of a CUDA device, and let it take as much as it likes again."""
    if device.type == "cuda":
        _cuda.empty_cache()
        _cuda.set_per_process_memory_fraction(1.0, device)


def peak(device: torch.device) -> int | None:
    """The most bytes that were taken of a CUDA device, with CUDA itself; None on torch's CPU device."""
    return _cuda.max_memory_reserved(device) + CONTEXT if device.type == "cuda" else None


def settle(device: torch.device) -> None:
    """Wait for all that was begun outside the streams of ``Streams``, which do not wait for it."""
    if device.type == "cuda":
        _cuda.synchronize(device)


class Streams:
    """The ways of chunks: up, work, down, each in the order of its calls and beside the others. On torch's CPU device
    there is nothing to order."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._streams = [_cuda.Stream(device) for _ in range(3)] if device.type == "cuda" else None

    @contextmanager
    def _on(self, number: int, after: Any) -> Iterator[None]:
        if self._streams is None:
            yield
            return
        with _cuda.device(self._device), _cuda.stream(self._streams[number]):
            if after is not None:
                self._streams[number].wait_event(after)
            yield

    def up(self) -> Any:
        """Copies to the device."""
        return self._on(0, None)

    def work(self, after: Any) -> Any:
        """Operations that begin when ``after`` has happened."""
        return self._on(1, after)

    def down(self, after: Any) -> Any:
        """Copies from the device."""
        return self._on(2, after)

    def mark(self) -> Any:
        """What happens when all that was put on the present stream is done."""
        if self._streams is None:
            return None
        return _cuda.current_stream(self._device).record_event(_cuda.Event(blocking=True))

    def wait(self, mark: Any) -> None:
        """Until it has happened. Raises RuntimeError if the device failed."""
        if mark is not None:
            mark.synchronize()


class Pinned:
    """Host memory that a CUDA device reads and writes by itself while it is registered. Arrays must not share pages."""

    def __init__(self, device: torch.device, arrays: Sequence[NDArray[Any]]) -> None:
        self._arrays: list[NDArray[Any]] = []
        if device.type == "cuda":
            with _cuda.device(device):
                for array in arrays:
                    if array.nbytes:
                        self._register(array, device)

    def _register(self, array: NDArray[Any], device: torch.device) -> None:
        if int(_cuda.cudart().cudaHostRegister(array.ctypes.data, array.nbytes, _PORTABLE)) == 0:
            self._arrays.append(array)
            return
        with suppress(RuntimeError):  # the next operation reports what failed; copies only take a little longer now
            torch.zeros((), device=device)

    def release(self) -> None:
        """Give it back to the operating system's management."""
        while self._arrays:
            _cuda.cudart().cudaHostUnregister(self._arrays.pop().ctypes.data)


class Workspace:
    """Float32 room for one run of base, agents and result; whoever computes holds ``turn``. Runs are ``run`` elements
    long, and not shorter than ``shortest``."""

    def __init__(self, device: torch.device, agents: int, run: int, shortest: int) -> None:
        self.turn = threading.Lock()
        self._device, self._agents, self._shortest = device, agents, shortest
        self.run = run
        self._values: Tensor | None = None

    def take(self) -> None:
        """Have the room, if it is not there. May raise OutOfMemoryError."""
        if self._values is None:
            self._values = torch.empty((self._agents + 2) * self.run, dtype=torch.float32, device=self._device)

    @property
    def can_be_halved(self) -> bool:
        """Whether runs may be shorter still."""
        return self.run > self._shortest

    def halve(self) -> None:
        """Shorter runs from now on, when what was begun is over."""
        settle(self._device)
        self._values = None
        _cuda.empty_cache()
        self.run = max(self.run // 2 // BLOCK * BLOCK, self._shortest)

    def floats(self, models: int, *shape: int) -> tuple[Tensor, Tensor]:
        """Room for the values of the models, the base first (models, *shape), and for the result ``shape``."""
        assert self._values is not None
        values = self._values[: (models + 1) * prod(shape)].view(models + 1, *shape)
        return values[:models], values[models]


def upload(target: Tensor, source: Bytes) -> Tensor:
    """Begin to copy bytes to the front of ``target``; they must stay as they are until that is over."""
    part = target[: source.size]
    part.copy_(torch.from_numpy(source), non_blocking=True)
    return part


def download(source: Tensor, target: Bytes) -> Bytes:
    """Begin to copy bytes into the front of ``target``."""
    part = target[: source.numel()]
    torch.from_numpy(part).copy_(source, non_blocking=True)
    return part
