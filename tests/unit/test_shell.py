"""Command lines as they reach a machine: what every login shell reads alike, and what a POSIX shell makes of it."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from datamanager.errors import RemoteFailure
from datamanager.transports.channel import RemoteProgram
from datamanager.transports.login_shell import START, command_line, printed_text
from datamanager.transports.remote import running
from datamanager.transports.remote.running import script, shell_words

SCRIPTS = sorted((Path(running.__file__).parent / "scripts").glob("*.sh"))
NAMES = [path.stem for path in SCRIPTS]
EVERY_BYTE = [bytes([byte]) for byte in range(1, 256)]


def output(argv: Sequence[str]) -> bytes:
    """Return what a program says that a POSIX login shell starts."""
    ran = subprocess.run(["sh", "-c", command_line(argv)], check=True, capture_output=True)
    assert ran.stdout.startswith(START)
    return ran.stdout.removeprefix(START)


def test_a_program_is_given_every_byte() -> None:
    words = [*EVERY_BYTE, b"", b"$(id)", b"a b", b"".join(EVERY_BYTE)]
    assert output(["printf", "%s\\0", *map(os.fsdecode, words)]).split(b"\0") == [*words, b""]


@pytest.mark.parametrize("words", [["a"], [os.fsdecode(b"".join(EVERY_BYTE))]])
def test_a_command_line_shows_no_word(words: list[str]) -> None:
    """One line of printable ASCII; what stands in quotes, and before the last word, is the same for all."""
    line = command_line(words)
    constant, code = line.rsplit(" ", 1)
    assert constant == command_line(["another"]).rsplit(" ", 1)[0]
    assert not re.search(r"[\\!\n]", constant), "shells differ in these, even in quotes"
    assert constant.count("'") == 2
    assert re.fullmatch(r"(?:[A-Za-z0-9_./=+-]|\\\\0[0-7]{3})+", code)
    assert code.startswith("exec")


def test_a_nul_is_refused() -> None:
    with pytest.raises(ValueError, match="NUL"):
        command_line(["rm", "a\0b"])


def test_a_command_line_goes_over_several_shells() -> None:
    """As a direct transfer's does: the source's login shell, its ssh, the destination's login shell."""
    inner = command_line(["printf", "%s", "a'b\\c !\n"])
    assert output(["sh", "-c", inner]) == START + b"a'b\\c !\n"


@pytest.mark.parametrize("path", SCRIPTS, ids=NAMES)
def test_script_is_sent_without_comments(path: Path) -> None:
    text = script(path.stem)
    assert not re.search(r"^\s*(#|$)", text, re.MULTILINE)
    for program in (text, path.read_text(encoding="utf-8")):
        subprocess.run(["sh", "-n", "-c", program], check=True)
    assert len(command_line(shell_words(path.stem, []))) < 9000, "dropbear takes no longer line"


def test_shell_words_are_a_program() -> None:
    words = shell_words("run", ["printf", "%s|", "a b", "$(id)", ""])
    pid, said = output(words).split(b"\n", 1)
    assert re.fullmatch(rb"dm-pid \d+", pid)
    assert said == b"a b|$(id)||"


class Said(RemoteProgram):
    """A program that said this, piece by piece; None where it was silent for a while. Reading calls nothing else."""

    def __init__(self, *pieces: bytes | None) -> None:
        super().__init__(1.0)
        self._pieces = iter(pieces)

    def _receive(self, timeout: float) -> bytes | None:
        return next(self._pieces, b"")

    def close_input(self) -> None:
        raise NotImplementedError

    def exit_status(self) -> int | None:
        raise NotImplementedError

    def _send(self, data: memoryview, timeout: float) -> int:
        raise NotImplementedError

    def _close(self) -> None:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("pieces", "output"),
    [
        ([START, b"a", None, b"b"], [b"a", None, b"b", b""]),
        ([b"hello" + START + b"a"], [b"a", b""]),
        ([b"hello\n\ndm-", b"sta", b"rt\na\ndm-start\n"], [b"a\ndm-start\n", b""]),
        ([b"hello", None, START], [None, b""]),
        ([b"this account runs no programs\n"], [b""]),
        ([], [b""]),
    ],
)
def test_output_begins_behind_what_login_scripts_print(pieces: list[bytes | None], output: list[bytes | None]) -> None:
    program = Said(*pieces)
    assert [program.read(60.0) for _ in output] == output


def test_login_scripts_that_print_without_end_are_refused() -> None:
    program = Said(*[b"fortune\n" * 1000] * 1000)
    with pytest.raises(RemoteFailure, match="no program started, but text came first: 'fortune'"):
        program.read(60.0)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (b"hello\n", "'hello'"),
        (b"\r\n \n  Welcome to \x1b[1mnode\x1b[0m \r\nmore\n", "'Welcome to \\x1b[1mnode\\x1b[0m'"),
        (b"no end\0\0\0\x61\x02", "'no end'"),
        (b"caf\xe9\n", "'caf\ufffd'"),
        (b"x" * 1000, repr("x" * 200)),
        (b"", "''"),
    ],
)
def test_printed_text_shows_the_first_line(text: bytes, shown: str) -> None:
    assert f"text came first: {shown}. Let the login scripts" in printed_text(text)
