"""The merge methods: one file a method, one line in ``METHODS``."""

from collections.abc import Mapping

from ..errors import RecipeError
from .base import Method
from .dare_linear import DareLinear
from .linear import Linear
from .ram import Ram
from .ram_plus import RamPlus
from .ram_plus_local import RamPlusTensorLocal
from .slerp import Slerp
from .task_arithmetic import TaskArithmetic
from .ties import Ties

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (Ram, RamPlus, RamPlusTensorLocal, Linear, TaskArithmetic, Ties, DareLinear, Slerp)
}


def find_method(name: str) -> type[Method]:
    """A method by its name or an alias. Raises RecipeError naming the ones there are."""
    for method in METHODS.values():
        if name in (method.name, *method.aliases):
            return method
    raise RecipeError(f"unknown method {name!r:.80}; known are {', '.join(METHODS)}")


def build_method(name: str, parameters: Mapping[str, object], agents: int) -> Method:
    """The method a recipe asks for. Raises RecipeError."""
    return find_method(name).build(parameters, agents)
