"""How much is moved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_SPARE = 1 << 30
"""Bytes of memory left for everything else."""


@dataclass(frozen=True, slots=True)
class Scale:
    """`size` is bytes of a large file, `files` the number of small ones, `huge` bytes of the file that memory is
    measured with."""

    size: int
    files: int
    huge: int

    @property
    def distant_files(self) -> int:
        """The number of small files that go a long way, where scp takes four round trips for each."""
        return self.files // 10

    def needed(self, groups: Sequence[str]) -> int:
        """Bytes of memory that the groups need: source and destination, or the destination of the huge file."""
        return max(2 * self.size, self.huge if "memory" in groups else 0) + _SPARE
