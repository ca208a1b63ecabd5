"""Settles a plan for a torch device: what the device and torch take is measured before the budgets are shared out."""

from dataclasses import replace

import torch

from .. import budget
from ..budget import MIB, Demand
from ..demand import input_widths, output_width, quantized_width
from ..execute import NoSink
from ..formats.device import fused
from ..formats.device import scratch as quantizing_scratch
from ..kernels.contract import BLOCK
from ..kernels.cuda import scratch as merging_scratch
from ..kernels.load import load_cpu
from ..planning import Plan
from .placement import LARGEST_CHUNK, DeviceDemand, fit, shortest_run
from .rehearsal import carry, kinds, made_up
from .torch_device import device_name, free_memory, named_errors, open_device
from .worker import open_workers

# What CUDA's runtime goes on to take of the host's memory after the first chunks.
_RUNTIME = 32 * MIB
_DEFAULT_SHARE = 0.8
# Bytes for each quantized value: as float32, and its bytes before rows are moved or rounded.
_ENCODED = 4 + 4
_SLOW = (
    "most types take several times as long to quantize on the device, without what Triton compiles ({}); it is part of "
    "CUDA builds of torch for Linux from 2.10 on, and needs a C compiler and Python's headers"
)


def placed(plan: Plan, demand: Demand, threads: int) -> Plan:
    """A plan for the device that it names. Raises DeviceError, BudgetError."""
    wanted = device_demand(plan, demand)
    allowed = plan.recipe.max_vram
    with named_errors(plan.placement.device):
        device = open_device(plan.placement.device)
        if allowed is None:
            allowed = int(_DEFAULT_SHARE * free_memory(device))
    plan = replace(plan, placement=replace(plan.placement, device=device_name(device)))
    smallest = replace(plan.memory, workers=1, chunk=wanted.fewest)
    *_, vram = fit(smallest, wanted, allowed)
    _load(replace(plan, memory=smallest, placement=replace(plan.placement, vram=vram)))
    granted, reserved = plan.memory.allowed, budget.peak() + (_RUNTIME if device.type == "cuda" else 0)
    memory = budget.fit(demand, allowed=granted, reserved=reserved, threads=threads, largest=LARGEST_CHUNK)
    workers, chunk, vram = fit(memory, wanted, allowed)
    memory = budget.fit(demand, allowed=granted, reserved=reserved, threads=workers, largest=chunk)
    notices = (*plan.notices, *missing(plan, device))
    return replace(plan, memory=memory, placement=replace(plan.placement, vram=vram), notices=notices)


def missing(plan: Plan, device: torch.device) -> tuple[str, ...]:
    """What would make the device faster, and is not there."""
    slow = device.type == "cuda" and _quantized_types(plan) and fused.find(device) is None
    return (_SLOW.format(fused.why_not(device)),) if slow else ()


def _quantized_types(plan: Plan) -> set[str]:
    return {job.target.dtype for job in plan.jobs if job.target is not None and job.target.is_quantized}


def device_demand(plan: Plan, demand: Demand) -> DeviceDemand:
    """What the merge takes on a device."""
    agents, jobs = len(plan.agents), plan.jobs
    merging = 4 * (agents + 2) + merging_scratch(agents)
    types = _quantized_types(plan)
    quantizing = _ENCODED + max(map(quantizing_scratch, types)) if types else 0
    numbers = -(-2 * demand.numbers // BLOCK)  # of a block, and once more when its axis moves
    return DeviceDemand(
        carried=sum(input_widths(plan.base, plan.agents, jobs)) + output_width(jobs) + quantized_width(jobs) + numbers,
        computed=max(merging, 4 * (agents + 2) + quantizing),
        worker=demand.worker + MIB,
        grain=demand.grain,
        shortest=shortest_run(jobs),
    )


def _load(smallest: Plan) -> None:
    """Carry a chunk of each kind of tensor, so that what is loaded when it is first used is there."""
    with open_workers(smallest, load_cpu(), (), NoSink()) as (worker,):
        for job in kinds(smallest):
            carry(smallest, job, made_up(smallest, job), worker)
