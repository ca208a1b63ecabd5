"""Every error that is raised on purpose, and the exit code of the command line for it.

StreammergeError            1   the root: catch this
├── FormatError             1   an input is broken, or of a kind that is not read   (streammerge.formats)
├── OutputError             1   the output cannot be written                        (streammerge.formats)
│   └── UnfinishedError     1   an unfinished run of it stands there, and going on was not asked for or is not possible
├── MismatchError           1   the models do not fit each other
├── DeviceError             1   a CUDA device is missing, or was lost
│   └── WrongBytesError     1   it computes other bytes than the processor: nothing of such a run is kept
├── NonFiniteError          1   a NaN or an infinity where a number should be
├── RecipeError             2   what was asked cannot be understood
├── BudgetError             3   it cannot be done within the memory that was granted
└── Interrupted           130   Ctrl-C, SIGTERM or SIGHUP; nothing stands under the final name
"""

from .formats.errors import FormatError, OutputError, StreammergeError, why

__all__ = [
    "BudgetError",
    "DeviceError",
    "FormatError",
    "Interrupted",
    "MismatchError",
    "NonFiniteError",
    "OutputError",
    "RecipeError",
    "StreammergeError",
    "UnfinishedError",
    "WrongBytesError",
    "why",
]


class UnfinishedError(OutputError):
    """An unfinished run stands where the output is made, and going on was not asked for, or is not possible."""


class MismatchError(StreammergeError):
    """The models do not fit each other: tensors missing or extra, shapes or types that differ."""


class DeviceError(StreammergeError):
    """A device is missing, or was lost."""


class WrongBytesError(DeviceError):
    """A device computes other bytes than the processor; what it has done before cannot be trusted either."""


class NonFiniteError(StreammergeError):
    """A NaN or an infinity in an input or in the result, with model, tensor and index."""


class RecipeError(StreammergeError):
    """What was asked cannot be understood: an unknown method, a parameter out of range."""

    exit_code = 2


class BudgetError(StreammergeError):
    """It cannot be done within the memory that was granted; the text names the least that would do."""

    exit_code = 3


class Interrupted(StreammergeError):
    """Stopped by Ctrl-C, SIGTERM or SIGHUP."""

    exit_code = 130
