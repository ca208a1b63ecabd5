"""Parameters that vary by tensor, as mergekit's recipes have them: by a part of the name, and along the layers."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import RecipeError
from .methods import build_method, find_method
from .methods.base import Method

Scalar = bool | int | float | str

# mergekit has no default for these: where a recipe gives them at all, it has to give them for every tensor.
NO_DEFAULT = frozenset({"weight", "t"})

_LAYER = re.compile(r"(?:(.*?)\.)?(\d{1,9})\.")


@dataclass(frozen=True, slots=True)
class Rule:
    """A value for the tensors whose name contains ``filter`` (None or ``*``: for all). A tuple is a gradient: it is
    spread evenly over the layers."""

    value: Scalar | tuple[Scalar, ...]
    filter: str | None = None

    @property
    def matches_all(self) -> bool:
        """Whether no tensor is left to the rules that follow."""
        return self.filter in (None, "*")

    def matches(self, tensor: str) -> bool:
        """Whether it holds for a tensor of this name; case matters, and nothing is a pattern."""
        return self.matches_all or str(self.filter) in tensor


@dataclass(frozen=True, slots=True)
class ByTensor:
    """A parameter that has another value in other tensors: that of the first rule that matches."""

    rules: tuple[Rule, ...]

    def at(self, tensor: str, depth: float) -> Scalar | None:
        """The value in a tensor at a depth from 0, the first layer, to 1, the last; None if no rule matches."""
        rule = next((rule for rule in self.rules if rule.matches(tensor)), None)
        if rule is None:
            return None
        return _along(rule.value, depth) if isinstance(rule.value, tuple) else rule.value

    def plain(self) -> list[Any]:
        """As mergekit's YAML has it."""
        rules = [{"filter": rule.filter, "value": plain(rule.value)} for rule in self.rules]
        for rule in rules:
            if rule["filter"] is None:
                del rule["filter"]
        alone = self.rules[0].value if len(self.rules) == 1 and self.rules[0].filter is None else None
        return list(alone) if isinstance(alone, tuple) else rules

    def __str__(self) -> str:
        parts = [f"{plain(rule.value)}" + ("" if rule.matches_all else f" in {rule.filter}") for rule in self.rules]
        return "; ".join(parts)


def _along(values: tuple[Scalar, ...], depth: float) -> Scalar:
    """Numbers are interpolated, in mergekit's order of operations; of words and truths one is taken."""
    place = depth * (len(values) - 1)
    before = int(place)
    after = min(before + 1, len(values) - 1)
    low, high = values[before], values[after]
    if isinstance(low, bool | str) or isinstance(high, bool | str):
        return low
    share = place - before
    return (1 - share) * low + share * high


def plain(value: object) -> Any:
    """A value of a parameter as data for JSON and YAML."""
    if isinstance(value, ByTensor):
        return value.plain()
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def varies(value: object) -> bool:
    """Whether a parameter has another value in other tensors."""
    return isinstance(value, ByTensor) or (isinstance(value, list | tuple) and any(map(varies, value)))


def value_at(value: object, tensor: str, depth: float) -> object:
    """What a parameter is in one tensor; None, also for single agents, where no rule matches."""
    if isinstance(value, ByTensor):
        return value.at(tensor, depth)
    return tuple(value_at(item, tensor, depth) for item in value) if isinstance(value, list | tuple) else value


def depths(tensors: Iterable[str]) -> dict[str, float]:
    """How deep each tensor lies, from 0 to 1. A layer is the first number of a name, of as many layers as names that
    begin alike count. Tensors outside the layers have depth 0, also those behind the last; a single layer has 1."""
    found = {name: _LAYER.match(name) for name in tensors}
    last: dict[str | None, int] = {}
    for match in filter(None, found.values()):
        last[match[1]] = max(last.get(match[1], 0), int(match[2]))
    return {
        name: 0.0 if match is None else int(match[2]) / last[match[1]] if last[match[1]] else 1.0
        for name, match in found.items()
    }


def general_method(name: str, parameters: Mapping[str, object], agents: int) -> Method:
    """The method as far as it is the same for all tensors. Raises RecipeError."""
    return build_method(name, {key: value for key, value in parameters.items() if not varies(value)}, agents)


def settled(general: Method, parameters: Mapping[str, object]) -> dict[str, Any]:
    """Every parameter with its value. Rules end with the default where a tensor might be left without a value."""
    usual = general.values()
    return {**usual, **{name: _ended(name, value, usual[name]) for name, value in parameters.items() if varies(value)}}


def _ended(name: str, value: object, default: Any) -> object:
    if isinstance(value, list | tuple):
        return tuple(_ended(name, item, default) for item in value)
    if not isinstance(value, ByTensor) or name in NO_DEFAULT or any(rule.matches_all for rule in value.rules):
        return value
    return ByTensor((*value.rules, Rule(default)))


def methods_by_tensor(
    name: str, parameters: Mapping[str, object], agents: Sequence[object], tensors: Iterable[str], merged: Iterable[str]
) -> dict[str, Method]:
    """The method of each tensor that is merged; where the values are the same, it is the same object.

    ``agents`` name themselves in errors; ``tensors`` are all there are: layers are counted among them. Every method is
    built here, so that a value that cannot be fails now. Raises RecipeError.
    """
    varying = {key: value for key, value in parameters.items() if varies(value)}
    steady = {key: value for key, value in parameters.items() if key not in varying}
    depth = depths(tensors) if varying else {}
    built: dict[object, Method] = {}
    methods = {}
    for tensor in merged:
        values = {key: value_at(value, tensor, depth[tensor]) for key, value in varying.items()}
        settings = tuple(values.items())
        if settings not in built:
            found = {key: _with_defaults(name, key, value, agents, tensor) for key, value in values.items()}
            given = {key: value for key, value in found.items() if value is not None}
            built[settings] = build_method(name, {**steady, **given}, len(agents))
        methods[tensor] = built[settings]
    return methods


def _with_defaults(method: str, key: str, value: object, agents: Sequence[object], tensor: str) -> object:
    """A value without gaps: for single agents the default, where mergekit has one; None if nobody has a value."""
    nobody = value is None or (isinstance(value, tuple) and not any(item is not None for item in value))
    if not nobody and not (isinstance(value, tuple) and None in value):
        return value
    if key in NO_DEFAULT:
        whose = f" of {agents[value.index(None)]}" if isinstance(value, tuple) else ""
        raise RecipeError(
            f"{method}: {key}{whose} is not given for tensor {tensor!r}; end its list with a value without a filter"
        )
    if nobody or not isinstance(value, tuple):
        return None
    return tuple(default_of(method, key) if item is None else item for item in value)


def default_of(method: str, key: str) -> Any:
    """The default of a method's parameter."""
    return next(parameter.default for parameter in find_method(method).parameters() if parameter.name == key)


def idle_filters(parameters: Mapping[str, object], tensors: Iterable[str]) -> list[str]:
    """A notice for every filter that matches none of the tensors."""
    names = list(tensors)
    filters = {(name, rule.filter): rule for name, value in parameters.items() for rule in _rules(value)}
    return [
        f"{name}: the filter {text!r} matches no tensor that is merged"
        for (name, text), rule in filters.items()
        if not any(map(rule.matches, names))
    ]


def _rules(value: object) -> Iterable[Rule]:
    if isinstance(value, ByTensor):
        yield from value.rules
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _rules(item)
