"""Ranges that a reader was dealt, of which it may give back what is not for it."""

from __future__ import annotations

from datamanager.transports.values import NextRange


class Deals:
    """A `NextRange`, with one range on top that was taken and given back."""

    def __init__(self, following: NextRange) -> None:
        self._following = following
        self._top: tuple[int, int] | None = None

    def __call__(self, wait: bool) -> tuple[int, int] | None:
        """Return the next range; see `NextRange`."""
        top, self._top = self._top, None
        return top or self._following(wait)

    def give_back(self, offset: int, length: int) -> None:
        """Have a range, or the rest of one, come next."""
        if length:
            self._top = (offset, length)


def just(offset: int, length: int) -> NextRange:
    """Deal out one range."""
    ranges = iter([(offset, length)] if length > 0 else [])
    return lambda _: next(ranges, None)
