"""Where the arithmetic of a merge is done, why there, and what it may take of the device's memory.

torch is imported where a device of it was asked for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module

from ..budget import MIB, Memory, format_size
from ..demand import piece_size
from ..errors import BudgetError, DeviceError
from ..jobs import TensorJob
from ..kernels.contract import BLOCK

# What the context and the code of CUDA take of the device beside what is allocated: held back from --max-vram.
CONTEXT = 512 * MIB
# Memory is taken from the device in pieces of 2 and 20 MiB, for each stream apart: what may lie unused in them.
_BESIDE = CONTEXT + 96 * MIB
_FEW = 3  # workers: one copies there, one computes, one copies back
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
    """On a device of torch, which is imported. Raises DeviceError if it is not there, or broken."""
    try:
        import_module("torch")
    except ModuleNotFoundError as error:
        raise DeviceError(f'--device {device}: needs torch: pip install "streammerge[torch]"') from error
    except (ImportError, OSError) as error:
        raise DeviceError(
            f"--device {device}: torch cannot be imported: {str(error).splitlines()[0]:.300}; install it anew, or use "
            "--device cpu"
        ) from error
    return Placement(device)


@dataclass(frozen=True, slots=True)
class DeviceDemand:
    """What a merge takes on a device, in bytes."""

    carried: int  # for each element of a chunk: what comes and what goes
    computed: int  # for each element of a run: its values, and what operations leave lying between them
    worker: int  # for each worker
    grain: int  # elements that must be in one chunk
    shortest: int  # elements of a run, at least

    @property
    def fewest(self) -> int:
        """Elements of the smallest chunk."""
        return -(-self.grain // BLOCK) * BLOCK


def shortest_run(jobs: Sequence[TensorJob]) -> int:
    """Elements: whole blocks, and what must be quantized in one go."""
    return -(-max(BLOCK, piece_size(jobs)) // BLOCK) * BLOCK


def fit(memory: Memory, demand: DeviceDemand, allowed: int) -> tuple[int, int, Vram]:
    """Workers, elements of a chunk, and the device's side. Few workers keep a device busy, long runs are what makes it
    fast: first workers become fewer, down to three, then chunks and runs shorter, then workers fewer still. Raises
    BudgetError naming the least that would do."""
    fewest, few = demand.fewest, min(_FEW, memory.workers)
    chunks = [memory.chunk]
    while chunks[-1] > fewest:
        chunks.append(max(chunks[-1] // 2 // BLOCK * BLOCK, fewest))
    several = [(n, chunk, min(chunk, _LONG_RUN)) for chunk in chunks for n in range(memory.workers, few - 1, -1)]
    single = [(n, chunk, 0) for n in range(few, 0, -1) for chunk in chunks]
    for workers, chunk, wanted in several + single:
        taken = _BESIDE + workers * (chunk * demand.carried + demand.worker)
        longest = max(min(chunk, _LONG_RUN), demand.shortest)
        run = min(longest, (allowed - taken) // demand.computed // BLOCK * BLOCK)
        if run >= max(wanted, demand.shortest):
            return workers, chunk, Vram(allowed, taken + run * demand.computed, run)
    least = _BESIDE + fewest * demand.carried + demand.shortest * demand.computed + demand.worker
    raise BudgetError(
        f"--max-vram {format_size(allowed)} is too small: it needs at least {format_size(least)} "
        f"({format_size(_BESIDE)} for CUDA itself); try --max-vram {-(-least // MIB)}M, or --device cpu"
    )
