"""Carries a plan out into its output, so that nothing is lost whatever happens, and nothing unfinished looks finished.

    OUT.partial/    is locked; its journal says what it holds
      take over     what an earlier run of the same recipe, versions and inputs left (--resume), or begin anew
      execute       what is left to do
      check         that no input changed meanwhile and that every tensor is whole
      complete      the folder and the manifest; make all durable; give it the final name

A run that fails keeps ``OUT.partial`` if going on makes sense: something is done, and no input was changed.
"""

import threading
import time
from itertools import chain
from pathlib import Path

from . import statistics
from .errors import FormatError, Interrupted, NonFiniteError, UnfinishedError, WrongBytesError
from .events import Finishing, Listener, Notice
from .execute import execute
from .folder import complete_folder
from .formats.atomic import Staging, write_file
from .formats.contract import Sink
from .formats.safetensors import SafetensorsSink
from .journal import NAME as JOURNAL
from .journal import Journal, read_journal
from .kernels.contract import Kernels
from .ledger import Ledger, Outcome
from .manifest import make_manifest, manifest_name
from .manifest_check import NAME as MANIFEST
from .planning import Plan, in_the_way
from .provenance import Facts, check_unchanged, first_difference, run_facts
from .report import AgentShare, agent_shares

# Seconds. After a NaN people mend the input or choose other options: a short run is then only in the way.
_WORTH_KEEPING = 60.0


def carry_out(
    plan: Plan, kernels: Kernels, listener: Listener, stop: threading.Event
) -> tuple[Outcome, tuple[AgentShare, ...]]:
    """Make the output of a plan. ``stop`` interrupts. Raises StreammergeError; then nothing stands under its name."""
    assert plan.output is not None
    facts = run_facts(plan)
    began = time.monotonic()
    with Staging(plan.output) as staging:
        ledger = _take_over(plan, staging, facts, listener)
        try:
            outcome = _execute(plan, kernels, staging.folder, ledger, facts, listener, stop)
            shares = _complete(plan, staging.folder, ledger, facts)
            if stop.is_set():
                raise Interrupted("interrupted; nothing was written under the final name")
            _give_name(plan, staging)
        except WrongBytesError:
            staging.keep = False
            raise
        except BaseException as error:
            if not isinstance(error, NonFiniteError) or time.monotonic() - began > _WORTH_KEEPING:
                _keep(plan, staging, ledger, facts, error)
            raise
    return outcome, shares


def _take_over(plan: Plan, staging: Staging, facts: Facts, listener: Listener) -> Ledger:
    """What is done already; what else an earlier run left is removed. Raises UnfinishedError if it may be wanted."""
    recipe, folder = plan.recipe, staging.folder
    known = statistics.load(plan, facts)
    records = read_journal(folder)
    begun = next(records, None)
    ledger, kept = Ledger(plan, known), list[str]()
    if begun is not None and (recipe.resume or not recipe.overwrite):
        staging.keep = True
        difference = first_difference(facts, begun.get("run"))
        if not recipe.resume:
            what = "of this merge" if difference is None else f"of another merge ({difference})"
            error = UnfinishedError(f"{folder}: holds an unfinished run {what}; to start anew: --overwrite")
            if difference is None:
                error.add_note("to go on with it")
            raise error
        if difference is not None:
            raise UnfinishedError(f"{folder}: cannot be resumed: {difference}; to start anew: --overwrite")
        ledger = Ledger(plan, chain(known, records))
        if not recipe.allow_non_finite and (ledger.total.non_finite_inputs or ledger.total.non_finite_outputs):
            raise UnfinishedError(
                f"{folder}: cannot be resumed: it holds NaN or infinity; give --allow-non-finite as before, or start "
                "anew: --overwrite"
            )
        kept = [JOURNAL, *(file.name for file in plan.files if ledger.share)]
    if ledger.share:
        listener(Notice(f"{folder}: {ledger.share:.0%} of the output is there; going on"))
    elif recipe.resume:
        listener(Notice(f"{folder}: holds nothing to resume; starting from the beginning"))
    if known:
        listener(Notice("what the agents changed was measured before, with the same inputs: not measured again"))
    staging.clear(kept)
    return ledger


def _execute(
    plan: Plan,
    kernels: Kernels,
    folder: Path,
    ledger: Ledger,
    facts: Facts,
    listener: Listener,
    stop: threading.Event,
) -> Outcome:
    """Do what is left to do, and see that the inputs are still what they were."""
    settled = statistics.are_settled(facts)
    sink = _open_sink(plan, folder, existing=ledger.share > 0)
    try:
        with Journal(folder, chain([{"run": facts}], ledger.records()), sink.sync) as ledger.journal:
            outcome = execute(plan, kernels, sink, listener, stop, ledger)
            listener(Finishing())
        sink.sync()
    finally:
        sink.close()
    check_unchanged(facts["inputs"], plan)
    if settled:
        statistics.save(plan, facts, ledger)
    return outcome


def _open_sink(plan: Plan, folder: Path, *, existing: bool) -> Sink:
    if plan.gguf is None:
        return SafetensorsSink(folder, plan.files, existing=existing)
    from .formats.gguf import GgufSink

    return GgufSink(folder, plan.files, existing=existing)


def _complete(plan: Plan, folder: Path, ledger: Ledger, facts: Facts) -> tuple[AgentShare, ...]:
    """Everything beside the weights: of a folder its other files, and the manifest."""
    shares = agent_shares(plan, ledger.total)
    if plan.is_folder:
        complete_folder(plan, folder, shares)
    write_file(folder / _manifest_name(plan), make_manifest(plan, facts, ledger, folder))
    return shares


def _give_name(plan: Plan, staging: Staging) -> None:
    replaced = in_the_way(plan) if plan.recipe.overwrite else []
    manifest = staging.target.with_name(_manifest_name(plan))
    if plan.is_folder:
        staging.finish(replaced=replaced, own=[JOURNAL])
    else:  # a manifest without its model is in nobody's way
        stale = [manifest] if manifest.is_file() and manifest not in replaced else []
        staging.finish([*(file.name for file in plan.files), manifest.name], [*replaced, *stale], [JOURNAL])


def _manifest_name(plan: Plan) -> str:
    assert plan.output is not None
    return MANIFEST if plan.is_folder else manifest_name(plan.output)


def _keep(plan: Plan, staging: Staging, ledger: Ledger, facts: Facts, error: BaseException) -> None:
    """Leave what is done for another run, if there is anything, and if no input was changed."""
    staging.keep = False
    try:
        check_unchanged(facts["inputs"], plan)
    except FormatError as changed:
        if not isinstance(changed.__cause__, OSError):  # what is out of sight may be the same when it is back
            return
    staging.keep = ledger.share > 0 or any(ledger.measurements())
    if staging.keep:
        what = f"{ledger.share:.0%} of the output" if ledger.share else "what was measured"
        error.add_note(f"{staging.folder}: keeps {what}; to go on with it")
