"""Sweeps: which names are partial files of ours, and which of them nobody needs any more. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from datamanager.domain.location import NAME_MAX, PART_SUFFIX

_PART = re.compile(rf"\..+\.([0-9a-f]{{8}})\.(0|[1-9]\d{{0,9}}){re.escape(PART_SUFFIX)}", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Part:
    """What a partial file's name tells: the first 8 hex digits of whose it is (a transfer, or an item of one), and of
    which attempt.
    """

    owner: str
    epoch: int


def read_part(name: str) -> Part | None:
    """Read a name that `domain.location.temporary_name` gives; None for any other, however it ends."""
    found = _PART.fullmatch(name)
    if found is None or len(name.encode("utf-8", "surrogateescape")) > NAME_MAX:
        return None
    return Part(found[1], int(found[2]))


def spared(part: Part | None, age: float, older_than: float, *, open_owner: bool) -> str | None:
    """Say why a file that ends like a partial file stays; None: it may go. Ages in seconds, by the machine's clock."""
    if part is None:
        return "not the name of a partial file"
    if open_owner:
        return "its transfer has not ended"
    if age < older_than:
        return f"younger than {older_than:.0f} s"
    return None
