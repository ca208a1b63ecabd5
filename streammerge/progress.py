"""Listeners that show a run: a live bar on a terminal, plain lines elsewhere. Both write to standard error."""

import sys
import time
from contextlib import suppress
from types import TracebackType
from typing import Protocol, Self

from . import budget
from .budget import counted, format_size
from .escape import printable
from .events import Advanced, Event, Finishing, Notice, PassStarted, Planned

_SECONDS_BETWEEN_LINES = 10.0


class Display(Protocol):
    """A listener that is switched on and off."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def __call__(self, event: Event) -> None:
        """Show one event."""
        ...


def display(*, quiet: bool) -> Display:
    """The display that fits: nothing, a live bar, or plain lines."""
    if quiet or sys.stderr is None:
        return Silence()
    return WhileItIsRead(LiveBar() if sys.stderr.isatty() else PlainLines())


class Silence:
    """Shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def __call__(self, event: Event) -> None:
        """See ``Display``."""


class WhileItIsRead:
    """Another display, until standard error is closed or full: that is no reason to stop a merge."""

    def __init__(self, inner: Display) -> None:
        self._inner = inner
        self._is_read = True

    def __enter__(self) -> Self:
        with suppress(OSError):
            self._inner.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):
            self._inner.__exit__(kind, error, trace)

    def __call__(self, event: Event) -> None:
        """See ``Display``."""
        try:
            if self._is_read:
                self._inner(event)
        except OSError:
            self._is_read = False


class PlainLines(Silence):
    """A line when something begins, and now and then one with the progress: for logs and pipes."""

    def __init__(self) -> None:
        self._done = self._total = 0
        self._began = self._last = time.monotonic()

    def __call__(self, event: Event) -> None:
        """See ``Display``."""
        now = time.monotonic()
        if isinstance(event, Notice):
            print(printable(event.text), file=sys.stderr, flush=True)
        elif isinstance(event, Planned):
            print(_planned(event), file=sys.stderr, flush=True)
        elif isinstance(event, PassStarted):
            self._done, self._total, self._began, self._last = 0, event.bytes_to_read, now, now
            print(f"{event.title}: {format_size(event.bytes_to_read)} to read", file=sys.stderr, flush=True)
        elif isinstance(event, Advanced):
            self._done += event.bytes_read
            if now - self._last >= _SECONDS_BETWEEN_LINES:
                self._last = now
                rate = self._done / (now - self._began)
                left = (self._total - self._done) / rate if rate else 0.0
                print(
                    f"{self._done / max(self._total, 1):.0%}, {format_size(rate)}/s, {left:.0f} s left, "
                    f"memory {format_size(budget.peak())}",
                    file=sys.stderr,
                    flush=True,
                )
        elif isinstance(event, Finishing):
            print("writing to disk", file=sys.stderr, flush=True)


class LiveBar(Silence):
    """Bytes, rate, time left, and memory against the budget."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            TextColumn("memory {task.fields[memory]}"),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._progress.add_task("planning", total=None, memory="")
        self._allowed = 0
        self._last = 0.0

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def __call__(self, event: Event) -> None:
        """See ``Display``."""
        if isinstance(event, Notice):
            self._progress.console.print(printable(event.text), markup=False, highlight=False)
        elif isinstance(event, Planned):
            self._allowed = event.plan.memory.allowed
            self._progress.console.print(_planned(event), markup=False, highlight=False)
        elif isinstance(event, PassStarted):
            self._progress.reset(self._task, total=event.bytes_to_read, description=event.title, memory=self._memory())
        elif isinstance(event, Advanced):
            self._progress.advance(self._task, event.bytes_read)
            if time.monotonic() - self._last > 0.5:
                self._last = time.monotonic()
                self._progress.update(self._task, memory=self._memory())
        elif isinstance(event, Finishing):
            self._progress.update(self._task, description="writing to disk", memory=self._memory())

    def _memory(self) -> str:
        return f"{format_size(budget.peak())} of {format_size(self._allowed)}"


def _planned(event: Planned) -> str:
    plan, memory = event.plan, event.plan.memory
    place = "" if plan.placement.is_processor else f" on {plan.placement}"
    writing = f"{format_size(plan.bytes_to_write)} to write; " if plan.output is not None else ""
    return (
        f"{plan.method.name}: base and {counted(len(plan.agents), 'agent')}, {len(plan.tensor_names)} tensors, "
        f"{writing}{counted(memory.workers, 'thread')}{place}, "
        f"{format_size(memory.projected)} of {format_size(memory.allowed)} memory projected"
    )
