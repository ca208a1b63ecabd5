"""python -m bench.sample: make the sample checkpoints that benchmarks and tests run on."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click

from bench.sample.agents import AGENTS, DATA, make_unpacked
from bench.sample.generate import SHAPES, make_agent, make_base
from bench.sample.smollm2 import make_smollm2
from bench.sample.wheel import SampleError

FOLDER = click.Path(file_okay=False, path_type=Path)


@click.group()
def main() -> None:
    """Make sample checkpoints: real ones from SmolLM2, or generated ones of any size."""


@main.command()
@click.argument("folder", metavar="DIR", type=FOLDER)
def smollm2(folder: Path) -> None:
    """Make DIR/base (SmolLM2-135M-Instruct, bf16) and its agents DIR/sum, DIR/caps and DIR/json."""
    base = folder / "base"
    _make(base, partial(make_smollm2, base), skip=True)
    for name in AGENTS:
        agent, packed = folder / name, DATA / f"{name}.xz"
        _make(agent, partial(make_unpacked, agent, base, packed), skip=True)


@main.command()
@click.argument("folder", metavar="DIR", type=FOLDER)
@click.option("--shape", type=click.Choice(list(SHAPES)), default="tiny", show_default=True, help="Sizes of the model.")
@click.option("--agents", type=click.IntRange(0), default=3, show_default=True, help="How many agents to make.")
@click.option("--seed", default=0, show_default=True, help="Same seed, same bytes.")
@click.option("--dtype", type=click.Choice(["BF16", "F16", "F32"]), default="BF16", show_default=True)
@click.option("--max-shard-size", type=click.IntRange(1), metavar="BYTES", help="Start a new file above this size.")
@click.option("--sparse", is_flag=True, help="Full headers and lengths, but all holes: takes no disk.")
def generate(
    folder: Path, shape: str, agents: int, seed: int, dtype: str, max_shard_size: int | None, sparse: bool
) -> None:
    """Make DIR/base and DIR/agent-0, DIR/agent-1, ... of a Llama shape."""
    base = folder / "base"
    make = partial(
        make_base, base, SHAPES[shape], dtype=dtype, max_shard_bytes=max_shard_size, seed=seed, sparse=sparse
    )
    _make(base, make)
    for index in range(agents):
        agent = folder / f"agent-{index}"
        _make(agent, partial(make_agent, agent, base, index=index, seed=seed, sparse=sparse))


def _make(folder: Path, make: Callable[[], Path], skip: bool = False) -> None:
    """Make one folder and say so. A folder that exists is complete, because it was renamed last."""
    if skip and (folder / "config.json").exists():
        click.echo(f"{folder}: complete, skipped")
        return
    start = time.perf_counter()
    try:
        make()
    except (SampleError, OSError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    seconds = time.perf_counter() - start
    weights = [path.stat() for path in folder.glob("*.safetensors")]
    size, disk = sum(stat.st_size for stat in weights), sum(stat.st_blocks * 512 for stat in weights)
    click.echo(
        f"{folder}: {size / 1e6:,.1f} MB of weights in {len(weights)} file{'s' * (len(weights) > 1)}, "
        f"{disk / 1e6:,.1f} MB on disk, {seconds:.1f} s ({disk / 1e6 / seconds:,.0f} MB/s)"
    )


if __name__ == "__main__":
    main()
