"""Query parameters of listings."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from datamanager.errors import InvalidRequest


def read_filters(
    items: Iterable[tuple[str, str]], known: Collection[str], readers: Mapping[str, Callable[[str], Any]]
) -> dict[str, Any]:
    """Read query parameters. Raises: InvalidRequest, which names each one that is unknown or wrong."""
    given: dict[str, Any] = {}
    wrong: dict[str, str] = {}
    for name, value in items:
        if name not in known:
            wrong[name] = f"unknown; known: {', '.join(known)}"
        elif name in given or name in wrong:
            wrong[name] = "may be given once"
        elif "\0" in value:
            wrong[name] = "must not hold a NUL character"
        else:
            try:
                given[name] = readers[name](value) if name in readers else value
            except ValueError as exc:
                wrong[name] = str(exc)
    if wrong:
        raise InvalidRequest("; ".join(f"{name}: {what}" for name, what in wrong.items()), wrong)
    return given
