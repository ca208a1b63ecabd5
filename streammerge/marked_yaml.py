"""YAML that remembers its lines, so that an error can say where. Nothing in a file can make it slow or run code."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

import yaml

from .errors import FormatError, RecipeError
from .formats.inputs import open_input

MAX_BYTES = 1 << 18
MAX_VALUES = 100_000  # counted with every alias written out: aliases of aliases grow without bound

_SCALARS = {f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str")}
_MERGED = "<<"  # the key under which a mapping takes in the entries of others


class _Loader(yaml.SafeLoader):
    def __init__(self, file: Path, text: str) -> None:
        super().__init__(text)
        self.file = file


@dataclass(frozen=True, slots=True)
class Marked:
    """One value of a file and where it stands. What asks for a kind of value raises RecipeError on any other."""

    node: yaml.Node
    loader: _Loader

    def fail(self, text: str) -> NoReturn:
        """An error at this line."""
        raise RecipeError(f"{self.where}: {text}")

    @property
    def where(self) -> str:
        """File and line, from 1."""
        return f"{self.loader.file}:{self.node.start_mark.line + 1}"

    @property
    def is_null(self) -> bool:
        """Whether nothing is given."""
        return bool(self.node.tag == "tag:yaml.org,2002:null")

    @property
    def is_list(self) -> bool:
        """Whether it is a list."""
        return isinstance(self.node, yaml.SequenceNode)

    @property
    def is_mapping(self) -> bool:
        """Whether it is a mapping."""
        return isinstance(self.node, yaml.MappingNode)

    def scalar(self, what: str = "value") -> Any:
        """A number, a truth, a text or None."""
        if not isinstance(self.node, yaml.ScalarNode):
            self.fail(f"{what}: wanted a single value, found {self._found()}")
        if self.node.tag not in _SCALARS:
            self.fail(f"{what}: wanted a number, a text, true or false, found {self.node.value!r}")
        try:
            return self.loader.construct_object(self.node)
        except (yaml.YAMLError, ValueError, LookupError) as error:
            self.fail(f"{what}: {self.node.value!r} cannot be read: {_one_line(error)}")

    def key(self) -> str:
        """The key of an entry."""
        return _MERGED if self.node.tag == "tag:yaml.org,2002:merge" else str(self.scalar("key"))

    def text(self, what: str) -> str:
        """A text that is not empty."""
        value = self.scalar(what)
        if not isinstance(value, str) or not value:
            self.fail(f"{what}: wanted a text, found {self.node.value!r}")
        return value

    def items(self, what: str) -> list["Marked"]:
        """The items of a list."""
        if not isinstance(self.node, yaml.SequenceNode):
            self.fail(f"{what}: wanted a list, found {self._found()}")
        return [Marked(item, self.loader) for item in self.node.value]

    def mapping(self, what: str, known: Iterable[str], refused: Mapping[str, str] | None = None) -> "Entries":
        """The entries of a mapping. No key may be unknown, or one that is ``refused`` with a reason; those that are
        null are left out."""
        if not isinstance(self.node, yaml.MappingNode):
            self.fail(f"{what}: wanted a mapping, found {self._found()}")
        try:
            self.loader.flatten_mapping(self.node)  # what `<<` brings in comes first, so that own keys prevail
        except yaml.MarkedYAMLError as error:
            self.fail(f"{what}: {error.problem}")
        known, refused, entries = list(known), refused or {}, {}
        for key, value in self.node.value:
            name = Marked(key, self.loader).key()
            if name not in known and name not in refused:
                Marked(key, self.loader).fail(unknown(what, name, [*known, *refused]))
            marked = Marked(value, self.loader)
            if name in refused and not marked.is_null:
                Marked(key, self.loader).fail(f"{name}: {refused[name]}; supported are {', '.join(known)}")
            entries[name] = marked
        return {name: marked for name, marked in entries.items() if not marked.is_null}

    def _found(self) -> str:
        return "a list" if self.is_list else "a mapping" if self.is_mapping else repr(self.node.value)


Entries = dict[str, Marked]


def unknown(what: str, name: str, known: list[str]) -> str:
    """What is said of a name that is not known: the one that may have been meant, or all there are."""
    near = get_close_matches(name, known, 1)
    hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known) or 'none'}"
    return f"{what}: {name} is not known; {hint}"


def load(path: Path) -> Marked:
    """The document of a file. Raises RecipeError."""
    try:
        with open_input(path) as file:
            raw = file.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            raise RecipeError(f"{path}: is too long for a recipe, more than {MAX_BYTES:,} bytes")
        loader = _Loader(path, raw.decode())
        node = loader.get_single_node()
        if node is None:
            raise RecipeError(f"{path}: is empty")
        if _values(loader, node, {}) > MAX_VALUES:
            raise RecipeError(f"{path}: has more than {MAX_VALUES:,} values, with every alias written out")
    except FormatError as error:
        raise RecipeError(str(error)) from None
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = "" if mark is None else f":{mark.line + 1}"
        raise RecipeError(f"{path}{line}: cannot be read as YAML: {error.problem or error.context}") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(f"{path}: cannot be read as YAML: {_one_line(error)}") from None
    except RecursionError:
        raise RecipeError(f"{path}: cannot be read as YAML: nested too deeply") from None
    return Marked(node, loader)


def _values(loader: _Loader, node: yaml.Node, counted: dict[int, int]) -> int:
    """Values in a node with aliases written out; each node is looked at once. An alias inside itself never ends."""
    if id(node) in counted:
        return counted[id(node)]
    counted[id(node)] = MAX_VALUES + 1  # what an alias to what it stands in finds
    inner: list[yaml.Node] = [] if isinstance(node, yaml.ScalarNode) else list(node.value)
    if isinstance(node, yaml.MappingNode):
        _check_once(loader, [key for key, _ in node.value])
        inner = [part for pair in node.value for part in pair]
    counted[id(node)] = 1 + sum(_values(loader, part, counted) for part in inner)
    return counted[id(node)]


def _check_once(loader: _Loader, keys: list[yaml.Node]) -> None:
    lines: dict[str, int] = {}
    for key in keys:
        marked = Marked(key, loader)
        name = marked.key()
        if name in lines and name != _MERGED:
            marked.fail(f"{name} stands twice, in line {lines[name]} already")
        lines[name] = key.start_mark.line + 1


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
