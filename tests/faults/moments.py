"""When a fault strikes: at a random byte of the transfers, or just before the first or after the last one."""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import Enum


class Mark(Enum):
    """What a moment is counted from."""

    REQUEST = "after the requests"
    """Seconds; the transfers are being taken, probed, begun."""
    BYTES = "of the bytes sent"
    """A share from 0 to 1 of all bytes that the transfers send to the destination."""
    END = "after the last byte"
    """Seconds; the transfers are being verified, published, recorded, cleaned up."""


@dataclass(frozen=True, slots=True)
class Moment:
    """A point of the transfers; `value` in the unit of its mark."""

    mark: Mark
    value: float

    @classmethod
    def draw(cls, chance: random.Random) -> Moment:
        """Draw a moment: seven in ten lie between the first and the last byte."""
        mark = chance.choices([Mark.REQUEST, Mark.BYTES, Mark.END], weights=[1, 7, 2])[0]
        longest = {Mark.REQUEST: 0.5, Mark.BYTES: 1.0, Mark.END: 0.8}[mark]
        return cls(mark, chance.uniform(0, longest))

    def __str__(self) -> str:
        if self.mark is Mark.BYTES:
            return f"at {self.value:.1%} {self.mark.value}"
        return f"{self.value * 1000:.0f} ms {self.mark.value}"
