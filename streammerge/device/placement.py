"""Where the arithmetic of a merge is done, why there, and what it may take of the device's memory. Imports no torch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec

from ..budget import MIB, Memory, format_size
from ..demand import piece_size
from ..errors import BudgetError, DeviceError
from ..jobs import TensorJob
from ..kernels.contract import BLOCK

# What the context and the code of CUDA take of the device beside what is allocated: held back from --max-vram.
CONTEXT = 512 * MIB
# Elements in one go: below that, starting the operations takes longer than they do.
_LONG_RUN = 64 * BLOCK
# Chunks are longer than on the processor: each is copied and started as a whole.
LARGEST_CHUNK = 64 * BLOCK


@dataclass(frozen=True, slots=True)
class Vram:
    """The device's side of a plan, in bytes; ``run`` in elements: as many are computed at a time."""

    allowed: int
    projected: int
    run: int


@dataclass(frozen=True, slots=True)
class Placement:
    """``device`` is "cpu" (Numba), "cuda:0" or, for tests, "torch:cpu"; ``why`` is empty where it was asked for.
    ``had_choice``: whether there was a GPU that could have been taken."""

    device: str
    why: str = ""
    vram: Vram | None = None
    had_choice: bool = True

    def __str__(self) -> str:
        return f"{self.device} ({self.why})" if self.why else self.device

    @property
    def is_processor(self) -> bool:
        """Whether Numba does the arithmetic."""
        return self.device == "cpu"


PROCESSOR = Placement("cpu", had_choice=False)


def torch_placement(device: str) -> Placement:
    """On a device of torch. Raises DeviceError if there is no torch."""
    if find_spec("torch") is None:
        raise DeviceError(f'--device {device}: needs torch: pip install "streammerge[torch]"')
    return Placement(device)


@dataclass(frozen=True, slots=True)
class DeviceDemand:
    """What a merge takes on a device, in bytes."""

    carried: int  # for each element of a chunk: what comes and what goes
    computed: int  # for each element of a run: its values, and what operations leave lying between them
    worker: int  # for each worker
    fixed: int  # once
    grain: int  # elements that must be in one chunk
    shortest: int  # elements of a run, at least


def shortest_run(jobs: Sequence[TensorJob]) -> int:
    """Elements: whole blocks, and what must be quantized in one go."""
    return -(-max(BLOCK, piece_size(jobs)) // BLOCK) * BLOCK


def fit(memory: Memory, demand: DeviceDemand, allowed: int) -> tuple[Memory, Vram]:
    """As many workers, chunks and runs as long as fit into ``allowed``: first shorter runs, then smaller chunks, then
    fewer workers. Raises BudgetError naming the least that would do."""
    shortest = demand.shortest
    fewest = -(-demand.grain // BLOCK) * BLOCK
    for workers in range(memory.workers, 0, -1):
        chunk = memory.chunk
        while chunk >= fewest:
            taken = CONTEXT + demand.fixed + workers * (chunk * demand.carried + demand.worker)
            run = min(max(chunk, shortest), _LONG_RUN, (allowed - taken) // demand.computed // BLOCK * BLOCK)
            if run >= shortest:
                fitted = replace(memory, workers=workers, chunk=chunk)
                return fitted, Vram(allowed, taken + run * demand.computed, run)
            chunk = chunk // 2 // BLOCK * BLOCK
    least = CONTEXT + demand.fixed + fewest * demand.carried + shortest * demand.computed + demand.worker
    raise BudgetError(
        f"--max-vram {format_size(allowed)} is too small: it needs at least {format_size(least)} "
        f"({format_size(CONTEXT)} for CUDA itself); try --max-vram {-(-least // MIB)}M, or --device cpu"
    )
