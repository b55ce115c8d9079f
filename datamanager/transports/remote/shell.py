"""The shell programs that run on machines: the files in `scripts/`, each as the one line that reaches the machine.

A csh as login shell passes on neither a newline nor a `!` without a blank after it, so a program is sent as one line.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from importlib.resources import files

_OPEN = re.compile(r"(?:^|; *)(?:do|then|else)$|\bcase .+ in$|[;&|{(]$")
"""Where a line ends so, no `;` belongs behind it."""


def shell_words(name: str, words: Sequence[str]) -> list[str]:
    """Return the command line that runs `scripts/<name>.sh` on a machine; `words` are its $1, $2, …"""
    return ["sh", "-c", script(name), "sh", *words]


@functools.cache
def script(name: str) -> str:
    """Return a program of `scripts/` as one line."""
    return joined((files(__package__) / "scripts" / f"{name}.sh").read_text("utf-8"))


def joined(text: str) -> str:
    """Join a program's lines into one that does the same: comments and blank lines go, commands get their `;`.

    A comment has a line of its own, and no word goes over the end of a line.
    """
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    return "".join(line + (" " if _OPEN.search(line) else " ; ") for line in lines).rstrip("; ")
