"""Many small files of this host by a process of its own beside the mover's, whose interpreter has one thread at work.

It is the program that other machines run for us (docs/adr/0019-a-program-for-many-files.md): their processors work on
files while the mover hashes. What it has no way for is done by system calls here.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from functools import partial

from datamanager.errors import RemoteFailure, TransportError
from datamanager.transports.bulk_port import Results
from datamanager.transports.local.beneath import Beneath
from datamanager.transports.local.bulk import LocalBulk
from datamanager.transports.piped_program import PipedProgram
from datamanager.transports.remote.by_program import ByProgram
from datamanager.transports.remote.many_files import ManyFiles


class LocalProgramBulk(ByProgram, LocalBulk):
    """Work on many small files by a running program of this host."""

    def __init__(self, beneath: Beneath, many: ManyFiles) -> None:
        LocalBulk.__init__(self, beneath)
        ByProgram.__init__(self, many)

    def _rename_without_links(
        self, names: Sequence[tuple[str, str]], places: Sequence[int]
    ) -> Results[TransportError | None]:
        """Give some files their new names by system calls."""
        for index, error in LocalBulk.rename(self, [names[place] for place in places], overwrite=False):
            yield places[index], error


class LocalProcesses:
    """Starts programs on this host, as a channel does on another machine. `patience` is in seconds."""

    python = sys.executable
    exact = True

    def __init__(self, patience: float) -> None:
        self.patience = patience

    def run(self, argv: Sequence[str], *, stdin: bool = False) -> LocalProgram:
        """Start a program. Raises: RemoteFailure."""
        return LocalProgram(argv, self.patience, stdin=stdin)

    def alive(self) -> bool:
        """Say that this host is there."""
        return True


class LocalProgram(PipedProgram):
    """A program of this host."""

    def __init__(self, argv: Sequence[str], patience: float, *, stdin: bool) -> None:
        super().__init__(patience, partial(_start, argv), stdin=stdin)
        self._before = None  # there is no login


def _start(argv: Sequence[str], *, stdin: int, stdout: int) -> subprocess.Popen[bytes]:
    try:
        # an own process group: Ctrl-C in the terminal is for the mover, which ends its transfers in order
        return subprocess.Popen(
            [*argv], stdin=stdin, stdout=stdout, stderr=subprocess.DEVNULL, bufsize=0, process_group=0
        )
    except OSError as exc:
        raise RemoteFailure(f"{argv[0]} can't be started: {exc.strerror}") from exc
