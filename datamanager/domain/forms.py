"""Empty form fields: a form can't leave out what it shows, so an empty field means its default."""

from __future__ import annotations

from typing import Any

from pydantic import BeforeValidator


def empty_is(default: object, **schema: Any) -> BeforeValidator:
    """Read an empty field, and null, as `default`; `schema` is for BeforeValidator."""
    return BeforeValidator(lambda value: default if value is None or value == "" else value, **schema)
