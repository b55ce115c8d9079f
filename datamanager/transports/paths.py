"""Paths between Python and the wire: strings whose bytes need not be UTF-8 (PEP 383)."""

from __future__ import annotations


def to_wire(path: str) -> bytes:
    """Return the path's bytes, surrogate escapes undone. Raises: ValueError for a NUL, which C servers would cut at."""
    if "\0" in path:
        raise ValueError("a path cannot contain a NUL")
    return path.encode("utf-8", "surrogateescape")


def from_wire(raw: bytes) -> str:
    """Return bytes as a path; those that are not UTF-8 become surrogate escapes."""
    return raw.decode("utf-8", "surrogateescape")


def shown(path: str) -> str:
    """Return the path for a message: quoted, odd characters escaped, so that it can be stored and printed anywhere."""
    return repr(path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace"))
