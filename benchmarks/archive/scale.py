"""How much is archived."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

_LARGE_ONES = 5
_SMALL = 10 * 1024
_MIXED_MOST = 5 << 20
_SPARE = 1 << 30
"""Bytes of memory left for everything else."""


@dataclass(frozen=True, slots=True)
class Scale:
    """`size` is bytes of a large file, `files` the number of the other ones."""

    size: int
    files: int

    @property
    def large(self) -> list[int]:
        """Sizes of a few large files, in bytes."""
        return [self.size] * _LARGE_ONES

    @property
    def small(self) -> list[int]:
        """Sizes of many small files, in bytes."""
        return [_SMALL] * self.files

    @property
    def mixed(self) -> list[int]:
        """Sizes of many files from 1 B to 5 MiB, as many of 1 KiB as of 1 MiB, with the large ones among them; the same
        at each call."""
        rng = random.Random(5)
        sizes = [round(_MIXED_MOST ** rng.random()) for _ in range(self.files)] + self.large
        rng.shuffle(sizes)
        return sizes

    def needed(self, groups: Sequence[str]) -> int:
        """Bytes of memory that the groups need: the files twice, and once more where a bundle and its member are."""
        sizes = {"large": 2 * sum(self.large), "small": 2 * sum(self.small), "mixed": 2 * sum(self.mixed)}
        sizes["recall"] = 2 * sum(self.large) + 2 * self.size
        return max(sizes[group] for group in groups) + _SPARE
