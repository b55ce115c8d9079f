"""One file from a source to a destination: what every race over large files has in common."""

from __future__ import annotations

import filecmp
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.race import WrongResult
from benchmarks.servers import fill

MB = 1_000_000


@dataclass(frozen=True, slots=True)
class OneFile:
    """A file that is there, and the path that it is to be copied to."""

    source: Path
    target: Path

    def reset(self) -> None:
        """Remove the destination."""
        self.target.unlink(missing_ok=True)

    def check(self, thoroughly: bool) -> None:
        """Compare sizes, and bytes too when `thoroughly`. Raises: WrongResult."""
        if not self.target.exists() or self.target.stat().st_size != self.source.stat().st_size:
            raise WrongResult(f"{self.target.name}: not all bytes arrived")
        if thoroughly and not filecmp.cmp(self.source, self.target, shallow=False):
            raise WrongResult(f"{self.target.name}: other bytes arrived")

    @property
    def megabytes(self) -> float:
        """Its size in MB (10^6 bytes)."""
        return self.source.stat().st_size / MB


@contextmanager
def one_file(source: Path, target: Path, size: int) -> Iterator[OneFile]:
    """Provide a file of `size` random bytes."""
    file = OneFile(fill(source, size), target)
    try:
        yield file
    finally:
        file.source.unlink()
        file.reset()
