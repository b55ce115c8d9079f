"""The kinds of values that settings have, each with the check that is made when it is read."""

from __future__ import annotations

import os
import re
from datetime import timedelta
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr
from pydantic_settings import NoDecode

OIDC_ALGORITHMS = ("RS256", "PS256", "ES256", "EdDSA")
"""The signatures that bearer tokens may have."""


def read_path(value: Path) -> Path:
    """Return an absolute path, with `~` resolved; links are left."""
    return Path(os.path.abspath(value.expanduser()))


def read_names(value: object) -> object:
    """Return the parts of a text with commas; anything else as it is."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


def read_seconds(value: object) -> object:
    """Return a number of seconds as a timedelta; anything else as it is: of ISO 8601, pydantic reads it."""
    if isinstance(value, str):
        try:
            return timedelta(seconds=float(value))
        except ValueError:
            return value
    return value


def read_archive_groups(value: tuple[str, ...]) -> tuple[str, ...]:
    """Check entries `group=machine`. Raises: ValueError."""
    for entry in value:
        group, equals, machine = entry.rpartition("=")
        if not (group and equals and machine):
            raise ValueError(f"{entry!r} must be like group=machine")
    return value


def read_amqp_users(value: tuple[str, ...]) -> tuple[str, ...]:
    """Check entries `user=identifier`. Raises: ValueError."""
    for entry in value:
        user, equals, identifier = entry.rpartition("=")
        # of the entry nothing is shown: a whole token may have been given by mistake
        if not (user and equals and re.fullmatch(r"[0-9A-Za-z]{12}", identifier)):
            raise ValueError("must be like user=identifier, the 12 characters that dm token list shows")
    return value


def read_oidc_algorithms(value: tuple[str, ...]) -> tuple[str, ...]:
    """Check that signatures are some of OIDC_ALGORITHMS, which are asymmetric. Raises: ValueError."""
    if not value or not set(value) <= set(OIDC_ALGORITHMS):
        raise ValueError(f"must be some of {', '.join(OIDC_ALGORITHMS)}")
    return value


def read_database_url(value: SecretStr) -> SecretStr:
    """Check the address of a catalogue, which may have a password. Raises: ValueError."""
    from sqlalchemy.engine import make_url  # a client names no database and is to start quickly
    from sqlalchemy.exc import ArgumentError

    try:
        backend = make_url(value.get_secret_value()).get_backend_name()
    except ArgumentError:
        raise ValueError("must be like sqlite:////path/catalogue.db or postgresql://user@host/name") from None
    if backend not in ("sqlite", "postgresql"):
        raise ValueError("must be SQLite or PostgreSQL")
    return value


Port = Annotated[int, Field(ge=1, le=65535)]
AbsolutePath = Annotated[Path, AfterValidator(read_path)]
Seconds = Annotated[timedelta, BeforeValidator(read_seconds)]
Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(read_names)]
ArchiveGroups = Annotated[Names, AfterValidator(read_archive_groups)]
AmqpUsers = Annotated[Names, AfterValidator(read_amqp_users)]
OidcAlgorithms = Annotated[Names, AfterValidator(read_oidc_algorithms)]
DatabaseUrl = Annotated[SecretStr, AfterValidator(read_database_url)]
