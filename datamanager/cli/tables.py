"""Lines and tables for a terminal. What names contain does nothing to it. Cells are never truncated, so that
identifiers can be copied.
"""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from datamanager.transports.values import printable, shown

_WIDEST = 100_000
"""Characters per line: a terminal wraps longer lines itself, and a pipe gets one line per row."""


def tell(line: object = "", *, error: bool = False) -> None:
    """Print a line, on standard error where it is no result; control characters are printed as text."""
    print(printable(str(line)), file=sys.stderr if error else sys.stdout)


class Listing:
    """A table with a header row."""

    def __init__(self, *headers: str) -> None:
        self._table = Table(*(Column(header, no_wrap=True) for header in headers), box=None, pad_edge=False)

    def add(self, *cells: object) -> None:
        """Add a row; None is an empty cell. Markup and control characters in a cell are printed as text."""
        texts = ["" if cell is None else str(cell) for cell in cells]
        self._table.add_row(*(Text(text if text.isprintable() else shown(text)) for text in texts))

    def print(self) -> None:
        """Print the table."""
        Console(width=_WIDEST).print(self._table)
