"""What a merge needs of memory, from its jobs: the arithmetic is that of ``budget``."""

from collections.abc import Iterable, Sequence
from math import prod

from .budget import Demand
from .checkpoint import Checkpoint
from .formats.dtypes import DTYPES
from .formats.reading import WINDOW_GRAIN
from .jobs import TensorJob
from .kernels.contract import BLOCK
from .methods.base import Measure
from .tree import rows_waiting

# What quantizing takes beside the chunk and the pieces: an encoder's own scratch, and the largest small tensor.
QUANTIZING = 1 << 20
# What a tensor takes in schedule, ledger and manifest, measured at 3.5 KB with a name of 60 letters.
ENTRY = 4 << 10
# What keeping the numbers of a tensor takes beside them and a copy: Python's own objects, rounded up.
KEPT = 1024


def input_widths(base: Checkpoint, agents: Sequence[Checkpoint], jobs: Sequence[TensorJob]) -> list[int]:
    """Bytes of the widest element that is read from the base and from each agent."""
    models = (base, *agents)
    widths = [0] * len(models)
    for job in jobs:
        for model in job.models(len(models)):
            widths[model] = max(widths[model], DTYPES[models[model].tensors[job.name].dtype].itemsize)
    return widths


def output_width(jobs: Sequence[TensorJob]) -> int:
    """Bytes of the widest element that a merge gives, before it is quantized."""
    return max(DTYPES[job.dtype].itemsize for job in jobs)


def demand_of(
    measures: Iterable[Measure],
    base: Checkpoint,
    agents: Sequence[Checkpoint],
    jobs: Sequence[TensorJob],
    *,
    mapped: bool,
    on_device: bool,
) -> Demand:
    """What each worker, tensor and element takes. What is mapped is copied once more if it goes to a device."""
    merged = [job for job in jobs if job.action == "merge"]
    counters, rows, numbers, kept = 0, 0, 0, 0
    # a chunk of whole grains is longer than half a block, and its last block may be a short one
    blocks = max(-(-(1 + (job.grain > 1)) * job.elements // BLOCK) for job in merged)
    for measure in measures:
        size = 8 * prod(measure.shape(len(agents)))
        counters = max(counters, size) if measure.kind == "counts" else counters
        if measure.kind == "sums":
            rows = max(rows, size * rows_waiting(blocks))
            numbers = max(numbers, size)
        elif measure.kind == "blocks":
            rows = max(rows, 3 * size * blocks)
        kept += len(merged) * (2 * size + KEPT) if measure.keeps else 0
    inputs = sum(input_widths(base, agents, jobs))
    edges = 0
    if mapped:  # the ends of a window are rounded out; tensors that are not aligned are copied as well
        models = (base, *agents)
        edges = 2 * WINDOW_GRAIN * len(models)
        crooked = any(info.offset % DTYPES[info.dtype].itemsize for model in models for info in model.tensors.values())
        inputs *= 2 if crooked or on_device else 1
    return Demand(
        inputs=inputs,
        output=output_width(jobs) + quantized_width(jobs),
        floats=4 * (len(agents) + 2),
        worker=counters + edges + 2 * 4 * piece_size(jobs) + (QUANTIZING if piece_size(jobs) else 0),
        tensor=2 * counters + rows,
        numbers=numbers,
        kept=kept + ENTRY * len(jobs),
        grain=max(min(job.segment, job.elements) for job in jobs),
    )


def quantized_width(jobs: Sequence[TensorJob]) -> int:
    """Bytes of an element in a GGUF file, at most and rounded up, in tensors of more than a block; 0 without these."""
    targets = [job.target for job in jobs if job.target and job.elements > BLOCK]
    return max((-(-target.block_bytes // target.block) for target in targets), default=0)


def encoded_size(jobs: Sequence[TensorJob], chunk: int) -> int:
    """Bytes of the largest piece of a GGUF file that a chunk becomes."""
    return max(job.target.nbytes(min(chunk, job.elements)) for job in jobs if job.target)


def piece_size(jobs: Sequence[TensorJob]) -> int:
    """Elements that are quantized at a time: a block, or two rows where these are longer; 0 for safetensors."""
    rows = [2 * job.row for job in jobs if job.target]
    return max(BLOCK, *rows) if rows else 0
