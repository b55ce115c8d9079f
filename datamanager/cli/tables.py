"""Tables on standard output. Cells are whole, however narrow the terminal: identifiers are there to be copied."""

from __future__ import annotations

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from datamanager.transports.paths import shown

_WIDEST = 100_000
"""Characters of a line: what a terminal can't hold it wraps itself, and a pipe gets a line a row."""


class Listing:
    """A table that is filled, then printed."""

    def __init__(self, *headers: str) -> None:
        self._table = Table(*(Column(header, no_wrap=True) for header in headers), box=None, pad_edge=False)

    def add(self, *cells: object) -> None:
        """Add a row; None is an empty cell. What a name holds is no markup, nor a control sequence for the terminal."""
        texts = ["" if cell is None else str(cell) for cell in cells]
        self._table.add_row(*(Text(text if text.isprintable() else shown(text)) for text in texts))

    def print(self) -> None:
        """Print it."""
        Console(width=_WIDEST).print(self._table)
