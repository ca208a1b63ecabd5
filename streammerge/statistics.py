"""What measure passes over the whole model found, kept in the cache folder: the next merge of the same inputs with
another r needs no such pass.

A file is named by a digest of the inputs (size, modification time, header and a sample of every file), versions, and
what is measured of which tensors; it holds the ledger's records as a journal does, a few dozen bytes for each tensor.
"""

import json
import time
from contextlib import suppress
from pathlib import Path

import numpy as np

from . import checksum
from .formats.atomic import replace_file
from .formats.errors import OutputError
from .formats.jit import CACHE
from .journal import Record, read_records, record_line
from .ledger import Ledger
from .planning import Plan
from .provenance import Facts

FOLDER = CACHE / "statistics"
# A file that was modified a moment before may be modified again in the same tick of the clock.
_SETTLED = 2 * 10**9  # nanoseconds


def load(plan: Plan, run: Facts) -> list[Record]:
    """What was measured before of the same inputs in the same way; nothing if that never was."""
    if plan.method.scope != "model":
        return []
    known = []
    for record in read_records(_file(plan, run)):
        with suppress(KeyError, OverflowError, TypeError, ValueError):  # one that no run can have written
            known.append(_compact(record))
    return known


def _compact(record: Record) -> Record:
    """Lists of Python's numbers would take a multiple."""
    return {"measured": record["measured"], "numbers": np.array(record["numbers"], np.int64)}


def save(plan: Plan, run: Facts, ledger: Ledger) -> None:
    """Keep what was measured. A cache that cannot be written is no error."""
    if plan.method.scope == "model":
        try:
            FOLDER.mkdir(parents=True, exist_ok=True)
            replace_file(_file(plan, run), map(record_line, ledger.measurements()))
        except (OSError, OutputError):
            return


def _file(plan: Plan, run: Facts) -> Path:
    counted = sorted((job for job in plan.jobs if job.action == "merge" and job.counted), key=lambda job: job.name)
    measured = [(job.name, repr(plan.method_of(job).measures())) for job in counted]
    facts = {"versions": run["versions"], "inputs": run["inputs"], "parts": run["parts"], "measured": measured}
    return FOLDER / f"{checksum.digest(json.dumps(facts).encode()).hex()}.json"


def are_settled(run: Facts) -> bool:
    """Whether the inputs, looked at just now, would have another time if they were modified from now on."""
    newest = max(file["modified"] for model in run["inputs"] for file in model["files"])
    return bool(time.time_ns() - newest >= _SETTLED)
