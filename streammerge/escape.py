"""Text from elsewhere (names of folders, tensors) where it could mean something: on a terminal, in Markdown."""

import re
from html import escape


def printable(text: str) -> str:
    """On one line; what moves a cursor, changes colours or cannot be encoded is shown as its code."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def markdown(text: str) -> str:
    """Running text in Markdown that shows ``text``, and ends no table's cell, begins no tag, link or emphasis."""
    return re.sub(r"([\\`*_\[\]|~])", r"\\\1", escape(printable(text), quote=False))


def code(text: str) -> str:
    """A code span in Markdown that shows ``text``: between more backticks than it has itself (CommonMark 6.1)."""
    shown = printable(text)
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", shown)), default=0))
    room = " " if "`" in shown else ""
    return f"{fence}{room}{shown}{room}{fence}"
