"""The parameters of a recipe file: single values, gradients over the layers, and lists of values with filters."""

from collections.abc import Mapping, Sequence

from .marked_yaml import Marked
from .methods.base import Method, Parameter
from .varying import NO_DEFAULT, ByTensor, Rule, Scalar

Rules = dict[str, tuple[Rule, ...]]

# mergekit's rescale of dare_linear is a truth.
RESCALE = {True: "l1", False: "none"}
# What mergekit takes though it changes nothing there; int8_mask is about its own memory.
_IDLE = {"task_arithmetic": ("density", "rescale"), "ties": ("rescale",)}


def read_parameters(mark: Marked | None, method: type[Method], *, of_model: bool) -> tuple[Rules, list[str]]:
    """The rules of each parameter, and notices on those without effect. ``of_model``: they are those of one model,
    where a parameter that all models share is an error: mergekit would not look at it. Raises RecipeError."""
    rules, notices = {}, []
    known = {parameter.name: parameter for parameter in method.parameters()}
    if method.presets:
        known["preset"] = Parameter("preset", "choice", None, None, None, tuple(method.presets), "")
    idle = ("int8_mask", *_IDLE.get(method.name, ()))
    for name, value in mark.mapping("parameters", [*known, *idle]).items() if mark else ():
        if name in idle:
            if method.name == "ties" and name == "rescale":
                if value.scalar(name) is not False:
                    value.fail("rescale: ties cannot rescale yet; supported is false")
            elif name != "int8_mask":
                notices.append(f"{value.where}: {name} has no effect with {method.name}")
        elif of_model and known[name].kind != "per agent":
            value.fail(f"{name} is one for all models: it has no effect here; move it to the recipe's own parameters")
        else:
            rules[name] = _rules(value, known[name])
    return rules, notices


def _rules(mark: Marked, parameter: Parameter) -> tuple[Rule, ...]:
    if mark.is_mapping:
        return (_conditional(mark, parameter),)
    if mark.is_list and any(item.is_mapping for item in mark.items(parameter.name)):
        return tuple(_conditional(item, parameter) for item in mark.items(parameter.name))
    return (Rule(_value(mark, parameter)),)


def _conditional(mark: Marked, parameter: Parameter) -> Rule:
    entries = mark.mapping(parameter.name, ("filter", "value"))
    if "value" not in entries:
        mark.fail(f"{parameter.name}: value is missing")
    text = entries["filter"].text("filter") if "filter" in entries else None
    return Rule(_value(entries["value"], parameter), text)


def _value(mark: Marked, parameter: Parameter) -> Scalar | tuple[Scalar, ...]:
    """A single value, or a gradient."""
    if not mark.is_list:
        return _scalar(mark, parameter)
    values = tuple(_scalar(item, parameter) for item in mark.items(parameter.name))
    if not values:
        mark.fail(f"{parameter.name}: the list is empty; leave it out")
    return values if len(values) > 1 else values[0]


def _scalar(mark: Marked, parameter: Parameter) -> Scalar:
    value = mark.scalar(parameter.name)
    if parameter.name == "rescale" and isinstance(value, bool):
        value = RESCALE[value]
    parsed: Scalar | tuple[float, ...] = parameter.parse(value, mark.where)
    if isinstance(parsed, tuple):
        mark.fail(f"{parameter.name}: wanted one value, found {value!r}; values for each model stand with the models")
    return parsed


def put_together(
    method: type[Method], shared: Mapping[str, tuple[Rule, ...]], own: Sequence[tuple[Marked, Rules]]
) -> dict[str, object]:
    """The values of a ``Recipe``. The rules of a model (``own``, one for each agent, and where it stands) come before
    the ``shared`` ones, then the method's default. Raises RecipeError."""
    values: dict[str, object] = {}
    for parameter in method.parameters():
        name = parameter.name
        if parameter.kind != "per agent":
            values |= {name: _of_rules(shared[name])} if name in shared else {}
            continue
        each = [rules.get(name, ()) + shared.get(name, ()) for _, rules in own]
        if not any(each):
            continue
        if name in NO_DEFAULT and not all(each):
            own[each.index(())][0].fail(f"{name} is given for other models, but not for this one")
        found = [_of_rules(rules) if rules else parameter.default for rules in each]
        values[name] = found[0] if all(item == found[0] for item in found) else tuple(found)
    return values | ({"preset": _of_rules(shared["preset"])} if "preset" in shared else {})


def _of_rules(rules: tuple[Rule, ...]) -> Scalar | ByTensor:
    """What follows a rule for all tensors is never reached."""
    until = next((number for number, rule in enumerate(rules, 1) if rule.matches_all), len(rules))
    first = rules[0]
    return first.value if first.matches_all and not isinstance(first.value, tuple) else ByTensor(rules[:until])
