"""What a merge method is: parameters, a list of measure passes, and one blend.

A method is one file: a frozen dataclass whose docstring is its published documentation and whose fields are
its parameters. It sees blocks of float32 and the primitives of ``kernels.contract``; where the bytes come
from, in which order chunks are taken and by how many workers, it cannot know, so it cannot depend on it.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from ..errors import RecipeError
from ..kernels.contract import Block, Kernels

State = Any  # what a method has learned from its measure passes: its own business
PerAgent = float | tuple[float, ...]

_FLOAT32_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True)
class Extent:
    """What a measure pass went over: one tensor, or the whole model (then ``tensor`` is empty)."""

    tensor: str
    elements: int
    agents: int


class Measure:
    """One reading of the inputs that yields numbers.

    ``kind`` says how blocks come together: ``counts`` are integers, added up in any order; ``sums`` are float64,
    one row a block, put together by ``combine`` along a fixed tree; ``blocks`` keeps an integer row for each block.
    ``keeps``: whether what is known of every tensor is kept to the end of the run. ``stored``: whether ``block`` takes
    blocks as stored, several at once.
    """

    title: ClassVar[str]
    kind: ClassVar[Literal["counts", "sums", "blocks"]] = "counts"
    keeps: ClassVar[bool] = False
    stored: ClassVar[bool] = True

    def shape(self, agents: int) -> tuple[int, ...]:
        """Shape of what ``block`` fills."""
        raise AssertionError

    def needed(self, state: State) -> bool:
        """Whether this pass is to be made at all, after what the earlier ones found."""
        return True

    def block(self, kernels: Kernels, block: Block, state: State, out: NDArray[Any]) -> None:
        """Add one block's numbers to ``out`` (zero at first; int64, or float64 for ``sums``)."""
        raise AssertionError

    def combine(self, one: NDArray[Any], other: NDArray[Any]) -> NDArray[Any]:
        """What two neighbouring blocks measured, together: a commutative function. For ``sums``."""
        together: NDArray[Any] = one + other
        return together

    def conclude(self, state: State, measured: NDArray[Any], extent: Extent) -> State:
        """What is known after the pass. ``measured`` has ``shape``, with a leading block axis for ``blocks``."""
        raise AssertionError


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter as the user sees it."""

    name: str
    kind: Literal["float", "int", "bool", "per agent", "choice"]
    default: Any
    low: float | None
    high: float | None
    choices: tuple[str, ...]
    help: str

    def parse(self, value: object, where: str) -> Any:
        """A value from the command line (a string) or a recipe, checked. Raises RecipeError."""
        try:
            parsed = self._convert(value)
        except (TypeError, ValueError, OverflowError):
            raise RecipeError(f"{where}: {self.name}={value!r:.80} is not {self._wanted()}") from None
        for number in parsed if isinstance(parsed, tuple) else (parsed,):
            if isinstance(number, float | int) and not self._in_range(number):
                raise RecipeError(f"{where}: {self.name}={value!s:.80} is out of range; wanted {self._wanted()}")
        return parsed

    def _convert(self, value: object) -> Any:
        if self.kind == "bool":
            return _boolean(value)
        if self.kind == "choice":
            if value not in self.choices:
                raise ValueError
            return value
        if isinstance(value, bool):
            raise TypeError
        if self.kind == "int":
            return int(str(value))
        if self.kind == "per agent":
            items = value.split(",") if isinstance(value, str) else value
            if isinstance(items, list | tuple):
                numbers = tuple(float(item) for item in items)
                return numbers[0] if len(numbers) == 1 else numbers
        return float(value)  # type: ignore[arg-type]

    def _in_range(self, number: float) -> bool:
        above = self.low is None or number >= self.low
        below = self.high is None or number <= self.high
        return abs(number) <= (2**63 if self.kind == "int" else _FLOAT32_MAX) and above and below

    def _wanted(self) -> str:
        if self.choices:
            return "one of " + ", ".join(self.choices)
        if self.kind == "bool":
            return "true or false"
        low = "" if self.low is None else f" from {self.low:g}"
        high = "" if self.high is None else f" up to {self.high:g}"
        many = ", or one for each agent with commas between" if self.kind == "per agent" else ""
        return f"a{'n integer' if self.kind == 'int' else ' number'}{low}{high}{many}"


def _boolean(value: object) -> bool:
    words = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
    word = str(value).lower()
    if word not in words:
        raise ValueError
    return words[word]


def parameter(
    default: Any,
    help: str,
    *,
    kind: Literal["float", "int", "bool", "per agent", "choice"] = "float",
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    """A field of a method: its default, what it does, the range in which it makes sense."""
    return dataclasses.field(
        default=default, metadata={"kind": kind, "low": low, "high": high, "choices": choices, "help": help}
    )


@dataclass(frozen=True)
class Method:
    """A merge method. Subclasses are frozen dataclasses; their docstring is what ``streammerge methods`` prints."""

    name: ClassVar[str]
    title: ClassVar[str]
    paper: ClassVar[str]
    aliases: ClassVar[tuple[str, ...]] = ()
    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {}
    scope: ClassVar[Literal["tensor", "model"]] = "tensor"  # what its measure passes go over
    uses_base: ClassVar[bool] = True  # False: the base gives names and copied tensors only
    tallies: ClassVar[bool] = False  # whether its blend counts changed and unique weights
    min_agents: ClassVar[int] = 1
    max_agents: ClassVar[int] = 32

    def measures(self) -> tuple[Measure, ...]:
        """The passes before the blend, in order."""
        return ()

    def blend(self, kernels: Kernels, block: Block, state: State) -> None:
        """Fill ``block.out`` from ``block.base`` and ``block.agents``; ``state`` is None without measures."""
        raise AssertionError

    @classmethod
    def parameters(cls) -> tuple[Parameter, ...]:
        """The parameters in the order of their fields; ``lambda_`` is called ``lambda`` by users."""
        return tuple(
            Parameter(name=field.name.rstrip("_"), default=field.default, **field.metadata)
            for field in dataclasses.fields(cls)
        )

    @classmethod
    def build(cls, given: Mapping[str, object], agents: int) -> Self:
        """The method with these parameters. Raises RecipeError on an unknown name or a value out of range."""
        values = dict(given)
        preset = values.pop("preset", None)
        if preset is not None:
            if preset not in cls.presets:
                raise RecipeError(
                    f"{cls.name}: unknown preset {preset!r:.80}; known: {', '.join(cls.presets) or 'none'}"
                )
            values = {**cls.presets[str(preset)], **values}
        known = {p.name: p for p in cls.parameters()}
        for name in values:
            if name not in known:
                raise RecipeError(f"{cls.name}: unknown parameter {name!r:.80}; it has: {', '.join(known) or 'none'}")
        parsed = {name: known[name].parse(value, cls.name) for name, value in values.items()}
        for name, value in parsed.items():
            if isinstance(value, tuple) and len(value) != agents:
                raise RecipeError(f"{cls.name}: {name} has {len(value)} values for {agents} agents")
        if not cls.min_agents <= agents <= cls.max_agents:
            wanted = (
                str(cls.min_agents) if cls.min_agents == cls.max_agents else f"{cls.min_agents} to {cls.max_agents}"
            )
            raise RecipeError(f"{cls.name}: takes {wanted} agents beside the base, {agents} given")
        names = {field.name.rstrip("_"): field.name for field in dataclasses.fields(cls)}
        return cls(**{names[name]: value for name, value in parsed.items()})

    def values(self) -> dict[str, Any]:
        """Every parameter with its value."""
        return {field.name.rstrip("_"): getattr(self, field.name) for field in dataclasses.fields(self)}


def for_agents(value: PerAgent, agents: int) -> NDArray[np.float32]:
    """A per-agent parameter as float32, one value for each agent."""
    return np.full(agents, value, np.float32)
