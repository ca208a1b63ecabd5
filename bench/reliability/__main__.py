"""python -m bench.reliability NAME: tables for docs/reliability.md, in Markdown on standard output."""

import tempfile
from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path

import click

from bench.process import compile_kernels


@click.group()
def main() -> None:
    """What goes wrong in real life, made to happen on purpose."""


@main.command()
@click.option("--work", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Where it happens: 1 GB.")
def faults(work: Path | None) -> None:
    """Every fault once: its message, exit code, what is left, and whether resuming ends the same. As root on Linux."""
    from bench.reliability.faults import provoke_all

    compile_kernels()
    with tempfile.TemporaryDirectory(dir=work) as folder:
        _print(
            ("fault", "provoked by", "message", "exit code", "left", "resumed to the same bytes"),
            (row.cells() for row in provoke_all(Path(folder).resolve())),
        )


@main.command()
@click.option("--data", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True,
              help="Folder with base (and a tokenizer), agent-0, agent-1, ... in bf16.")  # fmt: skip
@click.option("--budget", default="320M", show_default=True, help="--max-ram; the control group has 64 MiB more.")
def memory(data: Path, budget: str) -> None:
    """Merges in a control group of the budget and 64 MiB, page cache included, and without it. As root on Linux."""
    from bench.reliability.memory import measure

    compile_kernels()
    with tempfile.TemporaryDirectory(dir=data.parent) as work:
        _print(
            ("method", "output", "io", "inputs", "peak of the process", "most charged", "limit", "s", "s without"),
            (row.cells() for row in measure(data, Path(work), budget)),
        )


@main.command()
@click.option("--data", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True,
              help="Folder with base (and a tokenizer), agent-0, agent-1, ... in bf16.")  # fmt: skip
@click.option("--times", default=100, show_default=True, help="How often each merge is killed.")
def kills(data: Path, times: int) -> None:
    """kill -9 at random moments, and power failures, each resumed."""
    from bench.reliability.kills import MERGES, Merge, kill_and_resume

    compile_kernels()
    rows = []
    with tempfile.TemporaryDirectory(dir=data.parent) as work:
        for (out, method, quantize), power in product(MERGES, (False, True)):
            merge = Merge(_models(data), out, method, quantize)
            tally = kill_and_resume(merge, Path(work), times if not power else times // 4, power=power)
            kept = f"{min(tally.shares):.0%} to {max(tally.shares):.0%}" if tally.shares else ""
            what = "kill -9, then all that was not synced is lost" if power else "kill -9"
            counts = (tally.kills, tally.before, tally.within, tally.named, tally.same)
            rows.append((f"{method}, {quantize or 'safetensors'}", what, *map(str, counts), kept))
    _print(("merge", "what", "times", "nothing done yet", "in the middle", "finished", "same bytes", "left"), rows)


@main.command()
@click.option("--data", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True,
              help="Folder with base, agent-0, agent-1, ... in bf16, of some size.")  # fmt: skip
@click.option("--rounds", default=6, show_default=True)
def journal(data: Path, rounds: int) -> None:
    """What the journal and the checksums cost."""
    from bench.reliability.journal import cost

    compile_kernels()
    with tempfile.TemporaryDirectory(dir=data.parent) as work:
        seconds = cost(_models(data), Path(work), rounds)
    whole = seconds["as it is"]
    _print(("merge", "s", "ratio"), [(way, f"{s:.2f}", f"{s / whole:.3f}") for way, s in seconds.items()])


def _models(data: Path) -> list[Path]:
    return [data / "base", *sorted(data.glob("agent-*"))]


def _print(names: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table, row by row as they come."""
    click.echo("| " + " | ".join(names) + " |\n|" + "---|" * len(names))
    for row in rows:
        click.echo("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |")


if __name__ == "__main__":
    main()
