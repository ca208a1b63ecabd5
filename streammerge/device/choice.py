"""What ``--device auto`` means: the device is tried out where it may be worth it. Imports no torch.

It is tried out in a process of its own, because torch and CUDA take gigabytes of memory that a merge on the processor
would never get back.
"""

import json
import pickle
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from subprocess import PIPE

from .. import budget
from ..budget import format_size
from ..errors import Interrupted
from ..planning import Plan
from .placement import Placement

GIB = 1 << 30
# Starting CUDA takes seconds, in which this much is merged.
_WORTH_STARTING = 4 * GIB
# What torch and CUDA take of the host's memory before they do anything.
_ROOM = 3 * GIB
_CLEARLY = 0.8
_PATIENCE = 300.0  # seconds
_DRIVERS = (Path("/dev/nvidiactl"), Path("/dev/dxg"), Path("/dev/kfd"))


@dataclass(frozen=True, slots=True)
class Trial:
    """Seconds that the whole merge is going to take, from what was measured; ``start`` is what CUDA took to begin."""

    device: str
    processor: float
    accelerator: float
    reading: float
    start: float


def choose(plan: Plan, notify: Callable[[str], None], stop: threading.Event) -> Placement:
    """Where a merge is done that was planned for the processor, and why. Raises Interrupted."""
    missing = _missing()
    if missing is not None:
        return Placement("cpu", f"auto: {missing}", had_choice=False)
    obstacle = _obstacle(plan)
    if obstacle is not None:
        return Placement("cpu", f"auto: {obstacle}")
    notify("trying out the CUDA device (--device cpu would not)")
    found = try_out(plan, "cuda", stop)
    return Placement("cpu", f"auto: {found}") if isinstance(found, str) else decide(found)


def _missing() -> str | None:
    """What there is not."""
    if not any(driver.exists() for driver in _DRIVERS) and shutil.which("nvidia-smi") is None:
        return "there is no GPU, or no driver for it"
    if find_spec("torch") is None:
        return 'torch is not installed: pip install "streammerge[torch]"'
    return None


def _obstacle(plan: Plan) -> str | None:
    """Why the device need not be looked at."""
    if plan.bytes_to_read < _WORTH_STARTING:
        return f"reading {format_size(plan.bytes_to_read)} is over before CUDA has started"
    if plan.memory.allowed < _ROOM:
        return f"CUDA alone takes up to {format_size(_ROOM)} of memory, {format_size(plan.memory.allowed)} are allowed"
    return None


def try_out(plan: Plan, device: str, stop: threading.Event) -> Trial | str:
    """Measure in another process; or why that was not possible."""
    command = [sys.executable, "-P", "-m", "streammerge.device.trial", device]
    recipe = replace(plan.recipe, max_ram=max(plan.memory.allowed - budget.peak(), 1))  # this process has its part
    try:
        with subprocess.Popen(command, stdin=PIPE, stdout=PIPE, stderr=PIPE) as child:
            output, said = _communicate(child, pickle.dumps(recipe), stop)
    except OSError as error:
        return f"the device could not be tried out: {error}"
    lines = [line for line in output.splitlines() if line.startswith(b"{")]
    if child.returncode != 0 or not lines:
        last = said.decode(errors="replace").strip().splitlines() or [f"exit code {child.returncode}"]
        return f"the device could not be tried out: {last[-1]:.300}"
    told = json.loads(lines[-1])
    return str(told["error"]) if "error" in told else Trial(**told)


def _communicate(child: "subprocess.Popen[bytes]", data: bytes, stop: threading.Event) -> tuple[bytes, bytes]:
    """What it prints. It is killed when it takes too long, and when ``stop`` is set: then raises Interrupted."""
    end, given = time.monotonic() + _PATIENCE, data
    while True:
        try:
            return child.communicate(given, timeout=0.2)
        except subprocess.TimeoutExpired:
            given = b""
        if stop.is_set() or time.monotonic() > end:
            child.kill()
        if stop.is_set():
            raise Interrupted("interrupted; nothing was written under the final name")


def decide(trial: Trial) -> Placement:
    """The device where it is clearly faster, all in all."""
    processor = trial.reading + trial.processor
    accelerator = trial.reading + trial.accelerator + trial.start
    told = f"some {accelerator:.0f} s there, {processor:.0f} s on the processor"
    if accelerator < _CLEARLY * processor:
        return Placement(trial.device, f"auto: {told}")
    bound = "reading" if trial.reading > trial.processor else "computing"
    return Placement("cpu", f"auto: {trial.device} would gain little: {told}, bound by {bound}")
