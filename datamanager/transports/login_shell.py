"""What stands between us and a program on a machine: the login shell, and the scripts that it reads first.

An SSH server hands a command line to the login shell: sh, bash, zsh, dash, ksh, fish or tcsh, each with its own rules
for quotes, `!`, backslashes and newlines. So no name is ever in its sight. Ours is a constant line that all of them
read alike; it starts a POSIX sh, which decodes the rest. (docs/adr/0016-the-login-shell-sees-no-name.md)
"""

from __future__ import annotations

import shlex
import string
from collections.abc import Sequence

from datamanager.transports.values import shown, to_wire

START = b"\ndm-start\n"
"""What comes before a program's output. All before it was printed by login scripts."""
MOST_TEXT = 64 * 1024
"""Bytes that login scripts may print before a program starts."""

# in single quotes, and without a quote, a backslash, a `!` or a newline: those are what shells differ in
_SH = """exec sh -c 'echo; echo dm-start; eval "$(printf %b "$1")"' sh """
_PLAIN = frozenset((string.ascii_letters + string.digits + "_./=+-").encode("ascii"))
_LINE_SHOWN = 200
"""Characters of a line that a message quotes."""


def command_line(argv: Sequence[str]) -> str:
    """Return the line that runs a program on a machine, whatever the login shell there is.

    The program's words are code of a POSIX sh, of which every byte that any shell could take for more than itself is
    written as printf's `\\0ooo`; two backslashes without quotes are one to each shell. Raises: ValueError for a NUL.
    """
    match argv:
        case ["sh", "-c", code, "sh", *words]:  # the sh that decodes it will do
            code = f"set -- {shlex.join(words)}\n{code}"
        case _:
            code = "exec " + shlex.join(argv)
    return _SH + "".join(chr(byte) if byte in _PLAIN else f"\\\\0{byte:03o}" for byte in to_wire(code))


def printed_text(text: bytes) -> str:
    """Say what came where a protocol was expected, and what is to be changed."""
    lines = text.partition(b"\0")[0].decode("utf-8", "replace").splitlines()
    first = next((line.strip() for line in lines if line.strip()), "")[:_LINE_SHOWN]
    return (
        f"but text came first: {shown(first)}. Let the login scripts there (.bashrc, .zshenv, .cshrc, config.fish, or "
        f"those in /etc) print in interactive shells only"
    )
