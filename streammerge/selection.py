"""--only and --exclude: which tensors are left as they are in the base."""

from .checkpoint import Checkpoint
from .errors import RecipeError
from .recipe import Recipe, compile_pattern


class Selection:
    """What the patterns of a recipe say. Raises RecipeError where one of --only matches nothing."""

    def __init__(self, recipe: Recipe, base: Checkpoint) -> None:
        self._exclude = [compile_pattern(pattern) for pattern in recipe.exclude]
        self._only = [compile_pattern(pattern) for pattern in recipe.only]
        self.without_effect: list[str] = []
        for option, patterns in (("--exclude", self._exclude), ("--only", self._only)):
            for pattern in patterns:
                if any(pattern.search(name) for name in base.tensors):
                    continue
                if option == "--only":
                    raise RecipeError(f"{option} {pattern.pattern!r} matches no tensor of {base.path}")
                self.without_effect.append(f"{option} {pattern.pattern!r} matches no tensor of {base.path}")

    def reason(self, name: str) -> str | None:
        """Why a tensor is not merged, or None if it is."""
        for pattern in self._exclude:
            if pattern.search(name):
                return f"excluded by --exclude {pattern.pattern}"
        if self._only and not any(pattern.search(name) for pattern in self._only):
            return "not selected by --only"
        return None
