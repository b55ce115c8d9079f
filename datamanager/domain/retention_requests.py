"""What clients may request of retention: holds, lifetimes, restoring, runs."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Self

from pydantic import BeforeValidator, Field, model_validator

from datamanager.domain.fields import Bytes, Expiry, Lifetime, Whole, empty_is, read_duration
from datamanager.domain.requests import Request

TEXT_MAX = 2000


ShortText = Annotated[str, Field(max_length=TEXT_MAX)]
Number = Annotated[Annotated[Whole, Field(ge=0, le=2**63 - 1)] | None, empty_is(None)]
Size = Annotated[Bytes | None, empty_is(None, json_schema_input_type=int | str | None)]


class HoldRequest(Request):
    """Hold an object: neither retention nor a client may delete it until the hold is released."""

    reason: Annotated[ShortText, Field(min_length=1)]
    by: ShortText = ""
    """Who holds it; the service knows no users yet, so it believes this."""


class LifetimeRequest(Request):
    """Set the lifetime of an object: `lifetime` from now on, or `expires_at`; null removes the expiry."""

    lifetime: Lifetime = None
    expires_at: Expiry = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if len({"lifetime", "expires_at"} & self.model_fields_set) != 1:
            raise ValueError("give either lifetime or expires_at; null removes the expiry")
        return self

    def ends(self, now: datetime) -> datetime | None:
        """Return when it expires, None for never."""
        return now + self.lifetime if self.lifetime is not None else self.expires_at


class RestoreRequest(Request):
    """Take an object back from the rule that marked or archived it."""

    spare_for: Annotated[
        timedelta, BeforeValidator(lambda value: read_duration(value or "30d"), json_schema_input_type=str)
    ] = timedelta(days=30)
    """How long that rule leaves it alone; a hold is for good."""


class RetentionRunRequest(Request):
    """Ask for a run of retention. Caps can only lower those of retention.toml."""

    dry_run: Annotated[bool, empty_is(False)] = False
    rule: ShortText = ""
    """Carry out this rule only."""
    max_objects: Number = None
    max_bytes: Size = None
