"""python -m bench: measure the engine. Each command writes a page and a JSON file to bench/results."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from bench.process import BenchError
from bench.results import RESULTS, Result

FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@click.group()
@click.option("--results", type=click.Path(file_okay=False, path_type=Path), default=RESULTS, help="Where results go.")
@click.pass_context
def main(context: click.Context, results: Path) -> None:
    """Measure the engine. Results are checked before a time is reported."""
    context.obj = results


def _report(make: Callable[..., Result], *arguments: Any) -> None:
    """Run one benchmark, print its page and save it."""
    try:
        result = make(*arguments)
    except BenchError as error:
        raise click.ClickException(str(error)) from error
    result.save(click.get_current_context().obj)
    click.echo(result.markdown())


@main.command()
@click.option("--data", type=FOLDER, required=True, help="Folder with base, agent-0, agent-1, ... in bf16.")
@click.option("--mergekit", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="mergekit-yaml to race.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Rounds with a warm page cache.")
@click.option("--cold-rounds", type=click.IntRange(0), default=3, show_default=True, help="Rounds with a cold one.")
def engine(data: Path, mergekit: Path | None, rounds: int, cold_rounds: int) -> None:
    """Whole merges: against mergekit, and against reading and writing alone."""
    from bench.engine import bench_engine

    with tempfile.TemporaryDirectory(prefix="bench-", dir=data.parent) as work:
        _report(bench_engine, data, Path(work), rounds, cold_rounds, mergekit and mergekit.absolute())


@main.command()
@click.option("--data", type=FOLDER, required=True, help="Folder with base, agent-0, ... in bf16, and a tokenizer.")
@click.option("--mergekit", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True)
@click.option("--llama-cpp", type=FOLDER, required=True, help="Folder with llama.cpp's convert_hf_to_gguf.py.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
def pipeline(data: Path, mergekit: Path, llama_cpp: Path, rounds: int) -> None:
    """From checkpoints to Q4_K_M: one command against mergekit, converter and quantizer."""
    from bench.pipeline import bench_pipeline

    with tempfile.TemporaryDirectory(prefix="bench-", dir=data.parent) as work:
        _report(bench_pipeline, data, Path(work), rounds, mergekit.absolute(), llama_cpp)


@main.command()
@click.option("--data", type=FOLDER, required=True, help="Folder with base, agent-0, ... in bf16, and a tokenizer.")
@click.option("--device", default="cuda", show_default=True, help="As streammerge --device; torch:cpu tries this out.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
@click.option("--max-ram", default="8G", show_default=True, help="CUDA takes some gigabytes by itself.")
def cuda(data: Path, device: str, rounds: int, max_ram: str) -> None:
    """Merges and quantizers on a CUDA device, against the processor and against the device's limits."""
    from bench.cuda import bench_cuda

    with tempfile.TemporaryDirectory(prefix="bench-", dir=data.parent) as work:
        _report(bench_cuda, data, Path(work), device, rounds, max_ram)


@main.command()
@click.option("--data", type=FOLDER, required=True, help="Folder that has or will get a folder for each shape.")
@click.option("--shape", "shapes", multiple=True, default=("135m", "1.24b", "7b"), show_default=True)
def growth(data: Path, shapes: tuple[str, ...]) -> None:
    """Memory and time as models and the number of agents grow; planning for 70B."""
    from bench.growth import bench_growth

    _report(bench_growth, data, shapes)


@main.command()
@click.option("--seconds", type=float, default=0.2, show_default=True, help="Least time for each of five samples.")
def kernels(seconds: float) -> None:
    """Throughput of codecs, primitives and the whole chain on one core."""
    from bench.kernels import bench_kernels

    _report(bench_kernels, seconds)


@main.command()
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.option("--seconds", type=float, default=0.25, show_default=True, help="About the time of one sample of ggml.")
def quants(rounds: int, seconds: float) -> None:
    """Encoders and decoders of quantized types against ggml's, after comparing bytes. Needs llama-cpp-python."""
    from bench.quants import bench_quants

    _report(bench_quants, rounds, seconds)


@main.command()
@click.option("--data", type=FOLDER, required=True, help="Folder of python -m bench.sample smollm2.")
@click.option("--seed", "seeds", type=int, multiple=True, default=(777, 4242), show_default=True)
def skills(data: Path, seeds: tuple[int, ...]) -> None:
    """What each method keeps of the skills of three real agents. Needs torch and transformers."""
    from bench.skills import bench_skills

    with tempfile.TemporaryDirectory(prefix="bench-", dir=data.parent) as work:
        _report(bench_skills, data, Path(work), seeds)


@main.command()
@click.option("--data", type=FOLDER, required=True, help="Folder with base, agent-0, agent-1, ... in bf16.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
def io(data: Path, rounds: int) -> None:
    """Mapping against positional reads, by chunk size and threads."""
    from bench.reading import bench_reading

    _report(bench_reading, data, rounds)


if __name__ == "__main__":
    main()
