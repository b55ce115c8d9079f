"""What clients may request of service tokens."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from pydantic import BeforeValidator, Field, field_validator

from datamanager.domain.fields import Moment, Text, read_duration
from datamanager.domain.requests import Request

MANY = 100
"""Roles, groups or scopes of one token."""
NAME_MAX = 64
OVERLAP = timedelta(days=1)
Names = Annotated[tuple[Annotated[Text, Field(min_length=1)], ...], Field(max_length=MANY)]


class TokenRequest(Request):
    """Make a service token."""

    name: Annotated[str, Field(min_length=1, max_length=NAME_MAX)]
    """What it is for, such as the workflow that has it; no two tokens that are in force have the same."""
    roles: Names = ()
    """Roles whose scopes it has; `!group` in them means its groups."""
    groups: Names = ()
    scopes: Names = ()
    """Further scopes."""
    expires: Moment = None
    """When it ends: a time, or how long from now on; null: never."""

    @field_validator("name")
    @classmethod
    def _is_shown_whole(cls, value: str) -> str:
        if not value.isprintable() or value != value.strip():
            raise ValueError("must be printable, without spaces at its ends")
        return value


class PersonRequest(Request):
    """Withdraw a person, or let them in again."""

    person: Annotated[Text, Field(min_length=1, max_length=256)]
    """As `dm whoami` names them."""


class RotateRequest(Request):
    """Replace a service token by a new one of the same name, roles, groups and scopes."""

    overlap: Annotated[
        timedelta, BeforeValidator(lambda value: read_duration(value or "1d"), json_schema_input_type=str)
    ] = OVERLAP
    """How long the old one is accepted beside it."""
