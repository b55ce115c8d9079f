"""Classes, found by their root."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

T = TypeVar("T")


def every_subclass(root: type[T]) -> Iterator[type[T]]:
    """Yield all classes below `root` of our packages."""
    for child in root.__subclasses__():
        if not child.__module__.startswith("tests."):
            yield child
        yield from every_subclass(child)
