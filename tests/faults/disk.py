"""A small disk of its own, that can be filled to the last byte and freed again."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.programs import missing

PIECE = 64 * 1024


class SmallDisk:
    """A tmpfs of `size` bytes at `path`. Needs root; without, the test is skipped (in CI it fails)."""

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self._size = size
        self._ballast = path / "ballast"

    def __enter__(self) -> Self:
        if os.geteuid() != 0:
            missing("only root can mount a small disk")
        self.path.mkdir(parents=True, exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={self._size},mode=0755", "tmpfs", str(self.path)]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)
        if done.returncode:
            missing(f"a small disk can't be mounted here: {done.stderr.decode(errors='replace').strip()}")
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        # lazily: a process that is being ended may still have a file open there
        subprocess.run(["umount", "-l", str(self.path)], check=True, stdin=subprocess.DEVNULL)

    def fill(self) -> None:
        """Leave no byte free, also while others are freeing some at the same time."""
        with self._ballast.open("ab", buffering=0) as ballast:
            piece = bytes(PIECE)
            while piece:
                try:
                    ballast.write(piece)
                except OSError as exc:
                    if exc.errno != errno.ENOSPC:
                        raise
                    piece = piece[: len(piece) // 2]

    def free(self) -> None:
        """Take the ballast away. Idempotent."""
        self._ballast.unlink(missing_ok=True)
