"""What the command gives out: a table or JSON on standard output, a page in a file."""

import sys
from dataclasses import dataclass
from pathlib import Path

from . import document, page, table
from .result import Inspection


@dataclass(frozen=True, slots=True)
class Outputs:
    """Checked before anything is read: where a page cannot be made or written, it says so at once."""

    as_json: bool
    html: str | None
    quiet: bool

    def __post_init__(self) -> None:
        if self.html is not None:
            page.check(Path(self.html))

    def write(self, found: Inspection) -> None:
        """Everything that was asked for."""
        if self.html is not None:
            page.write(found, Path(self.html))
        if self.as_json:
            sys.stdout.writelines(document.json_pieces(found))
        elif not self.quiet:
            from rich.console import Console

            table.show(found, Console(soft_wrap=False))
