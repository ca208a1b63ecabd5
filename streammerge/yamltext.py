"""YAML that somebody else wrote, read without letting it grow: an alias repeats a whole branch, and that one others."""

from pathlib import Path
from typing import Any

from .errors import RecipeError

MAX_BYTES = 1 << 20
MAX_VALUES = 20_000  # with aliases written out


def parse_yaml(path: Path, text: str) -> Any:
    """The plain data in a YAML text. Raises RecipeError, ``path`` says where it stands."""
    import yaml

    if len(text) > MAX_BYTES:
        raise RecipeError(f"{path}: holds {len(text)} characters of YAML, at most {MAX_BYTES} are read")
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        if root is None:
            return None
        _check_size(path, root)
        return loader.construct_document(root)
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: cannot be read as YAML: {' '.join(str(error).split()):.500}") from None
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        # What a scalar's tag says is up to int(), datetime() and the like.
        raise RecipeError(f"{path}: cannot be read as YAML: {type(error).__name__}: {error!s:.200}") from None


def _check_size(path: Path, root: Any) -> None:
    """Count what it would be without aliases; one that stands in what it names has no end."""
    waiting, values = [root], 0
    while waiting:
        node = waiting.pop()
        values += 1
        if values > MAX_VALUES:
            raise RecipeError(f"{path}: its YAML has more than {MAX_VALUES} values, aliases written out")
        if isinstance(node.value, list):  # of nodes, or of pairs of a key and its value
            waiting += [part for entry in node.value for part in (entry if isinstance(entry, tuple) else (entry,))]
