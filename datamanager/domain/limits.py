"""Limits that are changed while transfers run: what may be requested, and what is in force."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Self

from pydantic import Field, ValidatorFunctionWrapHandler, WrapValidator, model_validator

from datamanager.domain.fields import Bandwidth, Whole
from datamanager.domain.requests import Request
from datamanager.errors import InvalidRequest
from datamanager.machines import MAX_TRANSFERS, Rate

NO_LIMIT = 0
"""How a limit that was taken away is stored and compared; null says that machines.toml has the word."""


def _null_lifts(value: object, read: ValidatorFunctionWrapHandler) -> object:
    return NO_LIMIT if value is None or value == "" else read(value)


class TransferLimitsRequest(Request):
    """Change the bandwidth of a transfer that has not ended; null (in a form: empty) lifts its limit."""

    bandwidth: Bandwidth


class MachineLimitsRequest(Request):
    """Change a machine's limits for all transfers, those under way included; null (in a form: empty) lifts a limit.

    A field that is not given stays as it is.
    """

    bandwidth: Annotated[Rate | None, WrapValidator(_null_lifts)] = None
    max_transfers: Annotated[Annotated[Whole, Field(ge=1, le=MAX_TRANSFERS)] | None, WrapValidator(_null_lifts)] = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.bandwidth is None and self.max_transfers is None:
            what = "give bandwidth, max_transfers or both"
            raise InvalidRequest(what, {"bandwidth": what, "max_transfers": what})
        return self


@dataclass(frozen=True, slots=True)
class Limits:
    """A machine's limits in force: bytes per second, and transfers at once; None: no limit.

    `changed`: when they were last changed while running; None: they are what machines.toml says.
    """

    bandwidth: int | None
    max_transfers: int | None
    changed: datetime | None = None
