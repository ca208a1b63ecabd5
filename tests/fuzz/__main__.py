"""``python -m tests.fuzz``: thousands of broken inputs, each a function of the seed and its number."""

import argparse
import os
import shutil
import sys
import time
import traceback
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from streammerge import budget
from streammerge.errors import StreammergeError, UnfinishedError
from tests.fuzz.corpus import LONG_AGO, age, corpus
from tests.fuzz.guard import Broken, Hang, check_error, check_memory, check_outside, fingerprint, watched
from tests.fuzz.mutate import break_place, mutate
from tests.fuzz.targets import TARGETS, Target

MEMORY_DISK = Path("/dev/shm")


def make_input(folder: Path, out: Path, target: Target, rng: Random) -> None:
    """The target's files, one or two of them broken."""
    names = [path for name in target.broken for path in corpus() if path == name or path.startswith(f"{name}/")]
    chosen = {rng.choice(names) for _ in range(rng.choice((1, 1, 2)))}
    for path, raw in corpus().items():
        if path.startswith(target.files):
            place = place_of(path, folder, out, target)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(mutate(path, raw, rng) if path in chosen else raw)
            os.utime(place, ns=LONG_AGO)
    if rng.random() < 0.1:
        break_place(place_of(rng.choice(sorted(chosen)), folder, out, target), folder.parent / "outside", rng)


def place_of(path: str, folder: Path, out: Path, target: Target) -> Path:
    """Where a file of the corpus is put: what an earlier run left, beside the output."""
    return (out if path.startswith(target.left) else folder) / path


def try_one(seed: int, number: int, kept: Path | None = None) -> tuple[str, str | None]:
    """Run one case: how it ended, and what was wrong with that. ``kept`` is where the input of a finding is put."""
    rng = Random(f"{seed}/{number}")
    target = TARGETS[number % len(TARGETS)]
    with TemporaryDirectory(dir=MEMORY_DISK if MEMORY_DISK.is_dir() else None) as place:
        folder, out = Path(place) / "in", Path(place) / "out"
        out.mkdir()
        folder.mkdir()
        (Path(place) / "outside").write_text("{}")
        make_input(folder, out, target, rng)
        try:
            ended = _outcome(target, folder, out)
            check_outside(Path(place))
            return ended, None
        except (Broken, Hang, Exception) as error:
            if kept is not None:
                shutil.copytree(place, kept / str(number), symlinks=True, ignore=_special)
            last = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(last.filename).name}:{last.lineno}"
            return "wrong", f"{target.name} {seed}/{number}: {type(error).__name__} at {where}: {error!s:.200}"


def _special(folder: str, names: list[str]) -> list[str]:
    """What is not kept: no file or folder, or a hole, a copy of which would fill the disk."""
    return [name for name in names if not (Path(folder, name).is_dir() or _is_small(Path(folder, name)))]


def _is_small(path: Path) -> bool:
    return path.is_file() and path.stat().st_size < 1 << 24


def _outcome(target: Target, folder: Path, out: Path) -> str:
    before, peak = fingerprint(folder), budget.peak()
    ended = "done"
    try:
        with watched(out, [out.parent / "outside", Path("/etc/passwd")] if target.confined else ()):
            target.run(folder, out)
    except StreammergeError as error:
        check_error(error)
        ended = type(error).__name__
        if any(
            not f"{path.name}/".startswith((*target.left, "m.partial/", "m.gguf.partial/")) for path in out.iterdir()
        ):
            raise Broken("something of the output was left") from error
    check_memory(peak)
    if fingerprint(folder) != before:
        raise Broken("an input was changed")
    return ended


def run(seed: int, numbers: range, kept: Path | None = None) -> tuple[Counter[str], list[str]]:
    """Several cases: how often each ending came, and the findings."""
    ends: Counter[str] = Counter()
    findings = []
    for number in numbers:
        ended, finding = try_one(seed, number, kept)
        ends[f"{TARGETS[number % len(TARGETS)].name}: {ended}"] += 1
        findings += [finding] if finding else []
    return ends, findings


def warm_up() -> None:
    """Load everything, so that no case pays for it: each target once, on whole input."""
    for target in TARGETS:
        with TemporaryDirectory() as place:
            folder, out = Path(place) / "in", Path(place) / "out"
            out.mkdir()
            for path, raw in corpus().items():
                whole = place_of(path, folder, out, target)
                whole.parent.mkdir(parents=True, exist_ok=True)
                whole.write_bytes(raw)
            age(folder)
            with suppress(UnfinishedError):  # which is what there is to say of a whole journal
                target.run(folder, out)


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--keep", type=Path, help="folder for the inputs of what was found")
    options = parser.parse_args()
    began, workers = time.monotonic(), os.cpu_count() or 1
    last = options.first + options.count
    parts = [range(start, min(start + 250, last)) for start in range(options.first, last, 250)]
    ends: Counter[str] = Counter()
    findings: list[str] = []
    with ProcessPoolExecutor(workers, initializer=warm_up) as pool:
        for some, found in pool.map(partial(run, options.seed, kept=options.keep), parts):
            ends += some
            findings += found
            for line in found:
                print(line, flush=True)
    for end, count in sorted(ends.items()):
        print(f"{count:7,} {end}")
    print(f"{options.count:,} inputs, {len(findings)} findings, {time.monotonic() - began:.0f} s", file=sys.stderr)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
