"""The root of every error that streammerge raises on purpose, and the two that file formats raise.

The whole tree is drawn in ``streammerge/errors.py``.
"""


class StreammergeError(Exception):
    """Something the user can act on; its text says where, what was found, what was wanted and what to do."""

    exit_code = 1


class FormatError(StreammergeError):
    """An input file is broken, or of a kind that is not read."""


class OutputError(StreammergeError):
    """The output cannot be written: it exists, there is no space, permission is missing."""
