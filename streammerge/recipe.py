"""What the user asked, from options or from a recipe file, before any model is opened."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from .errors import FormatError, RecipeError
from .formats.dtypes import floating_dtype
from .methods import find_method

DEFAULT_METHOD = "ram+"
DEFAULT_SHARD = 5 * 10**9  # of safetensors; a GGUF file is one unless asked otherwise
Head = Literal["tied", "untied"]
# "torch:cpu" is for tests: what CUDA does, done by torch on the processor
DEVICES = re.compile(r"auto|cpu|cuda(:\d{1,3})?|torch:cpu")
INTERMEDIATES = ("auto", "bf16", "f16", "f32", "none")


@dataclass(frozen=True, slots=True)
class GgufOptions:
    """What only a GGUF output has. ``tensor_types`` are (regular expression, type); ``quantize`` None is unquantized,
    ``intermediate`` the type that values are rounded to before they are quantized."""

    quantize: str | None = None
    intermediate: str = "auto"
    imatrix: Path | None = None
    pure: bool = False
    tensor_types: tuple[tuple[str, str], ...] = ()
    output_tensor_type: str | None = None
    token_embedding_type: str | None = None
    gguf_template: Path | None = None
    pre_tokenizer: str | None = None

    def __post_init__(self) -> None:
        if self.intermediate not in INTERMEDIATES:
            known = ", ".join(INTERMEDIATES)
            raise RecipeError(f"--intermediate {self.intermediate!r} is not known; it is one of {known}")
        if self.quantize is None:
            for option in ("imatrix", "pure", "tensor_types", "output_tensor_type", "token_embedding_type"):
                if getattr(self, option):
                    name = {"tensor_types": "tensor-type"}.get(option, option.replace("_", "-"))
                    raise RecipeError(f"--{name} says how to quantize; add --quantize TYPE, such as Q4_K_M")


@dataclass(frozen=True, slots=True)
class Recipe:
    """One merge: inputs, output, method, and how to go about it. Sizes in bytes; ``max_ram`` None means a share
    of what is free, ``threads`` None every processor, ``max_shard_size`` None what is usual for the format, 0 one file.
    ``parameters`` are the method's: one value, a tuple of one for each agent, or ``ByTensor`` in their place.
    ``head`` says which way to go where some models tie their head to the embedding and others do not.
    ``device`` is "auto", "cpu", "cuda" or "cuda:1"; ``max_vram`` None is most of what is free there.
    ``gguf`` is None where the output is safetensors; ``report`` is a page to write about what the agents changed;
    ``notices`` are what is to be said about what was asked."""

    base: Path
    agents: tuple[Path, ...]
    output: Path | None = None
    method: str = DEFAULT_METHOD
    parameters: Mapping[str, object] = field(default_factory=dict)
    max_ram: int | None = None
    threads: int | None = None
    io: Literal["auto", "mmap", "pread"] = "auto"
    exclude: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    dtype: str | None = None
    max_shard_size: int | None = None
    allow_non_finite: bool = False
    mixed_dtypes: bool = False
    head: Head | None = None
    overwrite: bool = False
    resume: bool = False
    report: Path | None = None
    gguf: GgufOptions | None = None
    device: str = "auto"
    max_vram: int | None = None
    notices: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        find_method(self.method)
        if not self.agents:
            raise RecipeError("no agents given; usage: streammerge merge BASE AGENT... -o OUT")
        if self.head not in (None, *get_args(Head)):
            raise RecipeError(f"--head {self.head!r} is not known; it is one of {', '.join(get_args(Head))}")
        if self.threads is not None and self.threads < 1:
            raise RecipeError(f"--threads must be at least 1, found {self.threads}")
        if DEVICES.fullmatch(self.device) is None:
            raise RecipeError(f"--device {self.device!r:.80} is not known; it is auto, cpu, cuda or cuda:1")
        if self.max_vram is not None and self.device == "cpu":
            raise RecipeError("--max-vram is for CUDA; leave it out, or choose --device cuda or auto")
        if self.report is not None and self.resume:
            raise RecipeError(
                "--report shows what the merge itself reads, and --resume does not read again what is done; "
                "leave one out (streammerge inspect makes the same page)"
            )
        for pattern in (*self.exclude, *self.only):
            compile_pattern(pattern)
        if self.dtype is not None:
            object.__setattr__(self, "dtype", _dtype(self.dtype))
        if self.gguf is not None and self.output is not None and self.output.suffix == ".safetensors":
            raise RecipeError(f"{self.output}: is to be safetensors, but options for GGUF are given; name it .gguf")
        if self.dtype is not None and self.gguf is not None and self.gguf.intermediate != "auto":
            raise RecipeError("--dtype and --intermediate both say what to round to; leave out one of them")

    @property
    def stored_dtype(self) -> str | None:
        """The floating type that the result is rounded to, as it is or before it is quantized; None is the base's."""
        asked = "auto" if self.gguf is None else self.gguf.intermediate
        return self.dtype if asked == "auto" else "F32" if asked == "none" else asked.upper()


def _dtype(text: str) -> str:
    try:
        return floating_dtype(text)
    except FormatError as error:
        raise RecipeError(str(error)) from None


def parse_tensor_type(text: str) -> tuple[str, str]:
    """``REGEX=TYPE`` as typed. Raises RecipeError."""
    pattern, equals, kind = text.rpartition("=")
    if not equals or not pattern or not kind:
        raise RecipeError(f"--tensor-type {text!r}: write REGEX=TYPE, such as 'ffn_down=Q6_K'")
    return pattern, kind


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """A regular expression on tensor names. Raises RecipeError."""
    try:
        return re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise RecipeError(f"{pattern!r:.200} is not a regular expression: {error}") from None
