"""streammerge: merge N checkpoints of a large language model inside a fixed RAM budget.

>>> import streammerge
>>> report = streammerge.merge("base", ["agent-a", "agent-b"], "merged", method="ram+", max_ram="8G")

``merge``, ``plan``, ``inspect`` and ``verify`` are what the command line calls; errors are in
``streammerge.errors``.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "Inspection",
    "Plan",
    "Recipe",
    "Report",
    "StreammergeError",
    "__version__",
    "inspect",
    "merge",
    "plan",
    "verify",
]

if TYPE_CHECKING:
    from .api import merge, plan, verify
    from .errors import StreammergeError
    from .inspection.result import Inspection
    from .inspection.run import inspect
    from .planning import Plan
    from .recipe import Recipe
    from .report import Report

_HOMES = {
    "merge": "api",
    "plan": "api",
    "inspect": "inspection.run",
    "Inspection": "inspection.result",
    "verify": "api",
    "StreammergeError": "errors",
    "Plan": "planning",
    "Recipe": "recipe",
    "Report": "report",
}


def __getattr__(name: str) -> Any:
    """Import on first use, so that ``import streammerge`` costs nothing."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
