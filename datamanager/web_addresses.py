"""Addresses of web services in settings: checked when they are read, and without passwords, as they are shown."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator


def _split(value: str, example: str) -> SplitResult:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        raise ValueError(f"must be like {example}, without user and password")
    return parts


def read_web_address(value: str) -> str:
    """Return an address without the slash at its end. Raises: ValueError."""
    parts = _split(value, "https://data.example")
    if parts.query or parts.fragment:
        raise ValueError("must be like https://data.example")
    return value.rstrip("/")


def read_origins(value: tuple[str, ...]) -> tuple[str, ...]:
    """Return origins (RFC 6454): scheme, host and port. Raises: ValueError."""
    for one in value:
        parts = _split(one, "https://data.example")
        if one != f"{parts.scheme}://{parts.netloc}":
            raise ValueError(f"{one!r} must be like https://data.example")
    return value


def read_prefect_address(value: str) -> str:
    """Return the address of a Prefect server's API. Raises: ValueError."""
    _split(value, "http://host:4200/api")
    return value.rstrip("/")


WebAddress = Annotated[str, AfterValidator(read_web_address)]
PrefectAddress = Annotated[str, AfterValidator(read_prefect_address)]
