"""The command line. Imports nothing heavy: ``streammerge --help`` answers at once."""

import gc
import json
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click
from click.core import ParameterSource

from . import __version__

if TYPE_CHECKING:
    from .recipe import Recipe

F = TypeVar("F", bound=Callable[..., Any])


class MergeByDefault(click.Group):
    """``streammerge BASE AGENT... -o OUT`` without a command means ``merge``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """See click."""
        own = {"--help", "-h", "--version"}
        if args and args[0] not in self.commands and args[0] not in own:
            near = get_close_matches(args[0], self.commands, 1, 0.75)
            if near and not Path(args[0]).exists():
                raise click.UsageError(f"No such command {args[0]!r}. Did you mean {near[0]!r}?", ctx)
            args = ["merge", *args]
        return super().parse_args(ctx, args)


def option(*names: str, **settings: Any) -> Callable[[F], F]:
    """A click option that may also be set by STREAMMERGE_NAME in the environment."""
    long = next(name for name in names if name.startswith("--"))
    variable = "STREAMMERGE_" + long.split("/")[0].strip("-").replace("-", "_").upper()
    return click.option(*names, envvar=variable, show_envvar=True, **settings)


def recipe_options(command: F) -> F:
    """What ``merge`` and ``plan`` take alike, each option in one place."""
    for decorate in reversed(
        (
            click.argument("models", nargs=-1, required=True, metavar="BASE AGENT... | RECIPE.yml"),
            option("-o", "--output", help="Folder to write, or a file that ends in .safetensors or .gguf."),
            option("-m", "--method", help="Merge method; see: streammerge methods.  [default: ram+]"),
            option("-p", "--parameter", "parameters", multiple=True, metavar="NAME=VALUE",
                   help="A parameter of the method, such as -p r=0.2; may be repeated."),
            option("--max-ram", metavar="SIZE",
                   help="Most memory the process may take, such as 8G.  [default: half of what is free]"),
            option("--threads", type=int, help="Worker threads.  [default: one for each processor]"),
            option("--io", type=click.Choice(["auto", "mmap", "pread"]), default="auto", show_default=True,
                   help="How inputs are read: mapped, or by positional reads (auto: mapped on a local disk)."),
            option("--device", metavar="auto|cpu|cuda|cuda:N", default="auto", show_default=True,
                   help="Where merging and quantizing are computed (auto: on a GPU if that is measured to be faster)."),
            option("--max-vram", metavar="SIZE",
                   help="Most memory of the GPU to take, such as 4G.  [default: four fifths of what is free there]"),
            option("--exclude", multiple=True, metavar="REGEX",
                   help="Tensors to copy from the base; may be repeated."),
            option("--only", multiple=True, metavar="REGEX",
                   help="Merge these tensors only, copy all others; may be repeated."),
            option("--quantize", metavar="TYPE",
                   help="Write GGUF of this type, such as Q4_K_M or Q8_0; docs/gguf.md lists them."),
            option("--imatrix", metavar="FILE", help="Importance matrix of llama-imatrix, GGUF or .dat."),
            option("--tensor-type", "tensor_types", multiple=True, metavar="REGEX=TYPE",
                   help="Type of the GGUF tensors that match; may be repeated."),
            option("--output-tensor-type", metavar="TYPE", help="Type of output.weight."),
            option("--token-embedding-type", metavar="TYPE", help="Type of token_embd.weight."),
            option("--pure", is_flag=True, help="One type for all matrices, no mixture."),
            option("--intermediate", type=click.Choice(["auto", "bf16", "f16", "f32", "none"]), default="auto",
                   show_default=True,
                   help="Type that values are rounded to before they are quantized (auto: as safetensors would be)."),
            option("--gguf-template", metavar="FILE",
                   help="A GGUF of the base: metadata, tokenizer and names of any architecture."),
            option("--pre-tokenizer", metavar="NAME", help="llama.cpp's pre-tokenizer, where it is not recognized."),
            option("--dtype", help="Floating type of the output, such as bf16.  [default: as in the base]"),
            option("--max-shard-size", "--split-max-size", metavar="SIZE",
                   help="Split the output into files of at most this size.  [default: 5GB, of GGUF one file]"),
            option("--allow-non-finite", is_flag=True, help="Go on with NaN and infinity in inputs or result."),
            option("--mixed-dtypes", is_flag=True, help="Allow agents of another floating type than the base."),
            option("--head", type=click.Choice(["tied", "untied"]),
                   help="Where only some models have a head of their own: leave it out, or give it to all."),
            option("--save-recipe", metavar="FILE.yml",
                   help="Write down, as a recipe to run again, what gives these bytes."),
            option("--overwrite", is_flag=True, help="Replace an output that exists, once the new one is whole."),
            option("--resume", is_flag=True, help="Go on with what an interrupted run of the same merge left."),
            option("--json", "as_json", is_flag=True, help="Print the result as JSON."),
        )
    ):  # fmt: skip
        command = decorate(command)
    return command


@click.group(cls=MergeByDefault, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="%(version)s")
def cli() -> None:
    """Merge N checkpoints of a large language model into one, inside a fixed RAM budget.

    \b
    streammerge BASE AGENT... -o OUT --max-ram 8G      the word "merge" may be left out
    streammerge RECIPE.yml -o OUT                      mergekit's YAML
    streammerge COMMAND --help                         every option
    """


@cli.command()
@recipe_options
@option(
    "--report",
    metavar="FILE",
    help="Write a page like that of inspect, from what the merge reads anyway; needs plotly.",
)
@option("-q", "--quiet", is_flag=True, help="No progress and no summary; errors only.")
def merge(quiet: bool, as_json: bool, save_recipe: str | None, **options: Any) -> None:
    """Merge BASE and AGENTs, checkpoints in safetensors, into OUT: safetensors, or GGUF (a name in .gguf, --quantize).

    Every tensor of the base is in the output, merged or copied. Nothing stands under the name OUT before it is whole.
    """
    from .api import merge_recipe
    from .escape import printable
    from .progress import display
    from .report import summary
    from .saved_recipe import saving

    stop = _stop_on_signals()
    recipe = _recipe(**options)
    _allow_many_files()
    with saving(recipe, save_recipe), display(quiet=quiet) as listener:
        report = merge_recipe(recipe, listener, stop)
    if as_json:
        _tell(json.dumps(report.to_dict(), indent=2))
    elif not quiet:
        _tell("\n".join(map(printable, summary(report))))


@cli.command()
@recipe_options
@option("-q", "--quiet", is_flag=True, help="No notices.")
def plan(quiet: bool, as_json: bool, save_recipe: str | None, **options: Any) -> None:
    """Show what a merge would do: tensors, memory, disk. Reads headers (and rows that a template is matched by)."""
    from .api import plan_recipe
    from .escape import printable
    from .events import Notice
    from .plantext import plan_text
    from .saved_recipe import saving

    def say(event: object) -> None:
        if isinstance(event, Notice) and not quiet:
            click.echo(printable(event.text), err=True)

    recipe = _recipe(**options)
    with saving(recipe, save_recipe):
        planned = plan_recipe(recipe, say)
    click.echo(planned.to_json() if as_json else plan_text(planned))


@cli.command()
@click.argument("base")
@click.argument("agents", nargs=-1, required=True, metavar="AGENT...")
@option("--max-ram", metavar="SIZE", help="Most memory the process may take.  [default: half of what is free]")
@option("--threads", type=int, help="Worker threads.  [default: one for each processor]")
@option(
    "--io", type=click.Choice(["auto", "mmap", "pread"]), default="auto", show_default=True, help="How inputs are read."
)
@option("--exclude", multiple=True, metavar="REGEX", help="Tensors to leave out; may be repeated.")
@option("--only", multiple=True, metavar="REGEX", help="Compare these tensors only; may be repeated.")
@option(
    "--epsilon",
    type=float,
    default=1e-5,
    show_default=True,
    help="A weight counts as changed if |agent - base| exceeds this.",
)
@option("--json", "as_json", is_flag=True, help="Print every number as JSON, by tensor, layer and module.")
@option("--html", metavar="FILE", help="Write a page with heat maps by layer and module, for a browser; needs plotly.")
@option("-q", "--quiet", is_flag=True, help="No progress and no table.")
def inspect(quiet: bool, as_json: bool, html: str | None, **options: Any) -> None:
    """Show what AGENTs changed in BASE: density, shared and unique weights, signs, angles; and what follows from it.

    One reading, within --max-ram. Nothing is written but --html.
    """
    from .inspection import present
    from .inspection.run import inspect as inspect_models
    from .progress import display

    outputs = present.Outputs(as_json=as_json, html=html, quiet=quiet)
    stop = _stop_on_signals()
    with display(quiet=quiet) as listener:
        found = inspect_models(**options, listener=listener, stop=stop)
    outputs.write(found)


@cli.command()
@click.argument("output", metavar="OUT")
@option(
    "--against",
    multiple=True,
    metavar="MODEL",
    help="Compute the merge again from these models: the base, then every agent, in their order.",
)
@option(
    "--share",
    type=click.FloatRange(0, 1),
    default=0.05,
    show_default=True,
    help="How much of it to compute again; 1 is all, and at least one chunk of every tensor.",
)
@option("--imatrix", metavar="FILE", help="The importance matrix that was used.")
@option("--gguf-template", metavar="FILE", help="The GGUF template that was used.")
@option("--max-ram", metavar="SIZE", help="Most memory that computing again may take.  [default: half of what is free]")
@option("--threads", type=int, help="Threads.  [default: one for each processor]")
@option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@option("-q", "--quiet", is_flag=True, help="No progress; problems only.")
def verify(output: str, quiet: bool, as_json: bool, **options: Any) -> None:
    """Check a merged model against its manifest: sizes, headers, the checksum of every tensor, NaN and infinity.

    With --against it is computed again from the models, a share of it or all, and compared byte by byte:

    \b
    streammerge verify OUT --against BASE --against AGENT-1 --against AGENT-2
    """
    from .api import verify as verify_api
    from .escape import printable
    from .progress import display

    stop = _stop_on_signals()
    given = {name: value for name, value in options.items() if value is not None}
    with display(quiet=quiet) as listener:
        verified = verify_api(output, listener=listener, stop=stop, **given)
    if as_json:
        _tell(json.dumps(verified.to_dict(), indent=2))
    elif verified.problems or not quiet:
        _tell("\n".join(map(printable, verified.lines())))
    sys.exit(1 if verified.problems else 0)


@cli.command()
@click.argument("name", required=False)
def methods(name: str | None) -> None:
    """List the merge methods, or explain one: its parameters, defaults and paper."""
    from .methods import METHODS, find_method
    from .plantext import method_line, method_text

    if name is None:
        click.echo("\n".join(method_line(method) for method in METHODS.values()))
    else:
        click.echo(method_text(find_method(name)))


def _tell(text: str) -> None:
    """Print a result. Raises OutputError: what was merged is whole, but whoever waits for the text must know."""
    from .errors import OutputError, why

    try:
        click.echo(text)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"the output is whole, but standard output cannot be written: {why(error)}") from error


def _recipe(models: tuple[str, ...], parameters: tuple[str, ...], **options: Any) -> "Recipe":
    """A recipe from what was typed. Options that were not given leave a recipe file's own values."""
    from .api import recipe_of
    from .errors import RecipeError
    from .mergekit_yaml import read_yaml
    from .recipe import DEFAULT_METHOD

    typed: dict[str, object] = {}
    for text in parameters:
        name, equals, value = text.partition("=")
        if not equals:
            raise RecipeError(f"-p {text}: write NAME=VALUE, such as -p r=0.2")
        typed[name.strip()] = value.strip()
    context = click.get_current_context()
    given = {n: v for n, v in options.items() if context.get_parameter_source(n) is not ParameterSource.DEFAULT}
    if models[0].endswith((".yml", ".yaml")):
        if len(models) > 1:
            raise RecipeError(f"{models[0]}: a recipe names its models itself; leave out {' '.join(models[1:])}")
        fields = read_yaml(Path(models[0]))
        read = _without_preset(str(given.get("method", fields["method"])), fields["parameters"], typed)
        return recipe_of(**{**fields, **given, "parameters": {**read, **typed}})
    given.setdefault("method", DEFAULT_METHOD)
    return recipe_of(models[0], models[1:], parameters=typed, **given)


def _without_preset(method: str, parameters: dict[str, Any], typed: dict[str, object]) -> dict[str, Any]:
    """The parameters of a recipe file without those that a preset on the command line sets."""
    from .methods import find_method

    preset = find_method(method).presets.get(str(typed.get("preset")), {})
    return {name: value for name, value in parameters.items() if name not in preset}


def _stop_on_signals() -> threading.Event:
    """Ctrl-C, SIGTERM and a terminal that is closed ask for a clean stop; a second Ctrl-C is Python's own."""
    stop = threading.Event()

    def ask(number: int, frame: object) -> None:
        stop.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores it: so do we
            signal.signal(number, ask)
    return stop


def _allow_many_files() -> None:
    """As many as the system lets this process have: each window of each worker takes one where inputs are mapped."""
    with suppress(ImportError, ValueError, OSError):  # Windows; macOS, whose hard limit is more than it allows
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def main() -> None:
    """Run the command line.

    What a start makes, some 100,000 objects, stays until the end. Python's collector is to look at it seldom, and not
    once more when all is done: together that takes 0.2 s.
    """
    gc.set_threshold(10_000)
    try:
        _run()
    finally:
        gc.freeze()


def _run() -> None:
    """Every error of ours is one line and an exit code, and what is kept another line."""
    try:
        cli(prog_name="streammerge", standalone_mode=False)
    except click.ClickException as error:
        with suppress(OSError):
            error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt) as error:
        _fail(error, "interrupted; nothing was written under the final name", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python complains once more when it ends
        sys.exit(1)
    except MemoryError as error:
        _fail(error, "the system gave no more memory; give a smaller --max-ram", 1)
    except Exception as error:
        from .errors import StreammergeError, why  # only now: it imports numpy

        if isinstance(error, StreammergeError):
            _fail(error, str(error), error.exit_code)
        if isinstance(error, OSError):
            _fail(error, f"{error.filename or 'a file'}: {why(error)}", 1)
        raise


def _fail(error: BaseException, text: str, code: int) -> NoReturn:
    """Say what went wrong, if anybody still reads it, and, if something can be resumed, by which command."""
    from .escape import printable

    with suppress(OSError):
        click.echo(f"Error: {printable(text)}", err=True)
        cause = error if hasattr(error, "__notes__") else error.__context__
        for note in getattr(cause, "__notes__", ()):
            click.echo(f"{printable(note)}:\n  {printable(_resuming())}", err=True)
    sys.exit(code)


def _resuming() -> str:
    """The command that was given, with --resume."""
    given = [argument for argument in sys.argv[1:] if argument != "--resume"]
    return shlex.join(["streammerge", *given, "--resume"])
