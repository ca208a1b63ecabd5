"""What happens during a run, as small records. The progress bar and the logs are listeners."""

from collections.abc import Callable
from dataclasses import dataclass

from .planning import Plan


@dataclass(frozen=True, slots=True)
class Notice:
    """Something the user should read, in one sentence."""

    text: str


@dataclass(frozen=True, slots=True)
class Planned:
    """The plan stands; reading begins."""

    plan: Plan


@dataclass(frozen=True, slots=True)
class PassStarted:
    """A pass over the model begins: what it does, and how many bytes it reads at most."""

    title: str
    bytes_to_read: int


@dataclass(frozen=True, slots=True)
class Advanced:
    """A chunk is done: bytes read and written for it."""

    bytes_read: int
    bytes_written: int


@dataclass(frozen=True, slots=True)
class Finishing:
    """All is computed; the output is being made durable."""


Event = Notice | Planned | PassStarted | Advanced | Finishing
Listener = Callable[[Event], None]
