"""Numbers as people read them."""

from math import isfinite, isinf, isnan
from typing import Any


def share(value: Any) -> str:
    """``8.55%``; a dash where there is no number."""
    number = float(value)
    return "–" if isnan(number) else f"{number:.2%}"  # noqa: RUF001


def number(value: Any, digits: int = 3) -> str:
    """Three digits; ``∞``; a dash where there is no number."""
    found = float(value)
    if isfinite(found):
        return f"{found:.{digits}g}"
    return "∞" if isinf(found) else "–"  # noqa: RUF001


def layer_name(layer: int | None) -> str:
    """How a row is called; what has no number lies outside the layers."""
    return "outside" if layer is None else str(layer)


def plain(value: Any) -> float | int | None:
    """For JSON: integers as such, None for what is no number or not finite."""
    found = float(value)
    if not isfinite(found):
        return None
    return int(found) if found.is_integer() and abs(found) >= 1 else found
