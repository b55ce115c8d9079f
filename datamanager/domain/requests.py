"""What clients may ask: typed, checked, and the same over HTTP, AMQP and in the catalogue.

Unknown fields are ignored (old clients send `type`, `storage_technology`, …). Fields may be strings, as a form sends
them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from datamanager.domain.json_values import objection
from datamanager.errors import InvalidRequest
from datamanager.machines import VerifyPolicy

M = TypeVar("M", bound=BaseModel)

SIZE_MAX = 2**63 - 1
TEXT_MAX = 65_536


def _empty_is_none(value: object) -> object:
    return None if value == "" else value


def _json_object(value: object) -> object:
    if value is None or value == "":
        return {}
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise ValueError('must be a JSON object such as {"key": "value"}') from None
    if not isinstance(value, dict):
        raise ValueError('must be a JSON object such as {"key": "value"}')
    return value


def _storable(value: object) -> object:
    if isinstance(value, str | dict):
        wrong = objection(value)
        if wrong is not None:
            raise ValueError(wrong)
    return value


def _unknown_is_none(value: object) -> object:
    return None if value in ("", 0, "0") else value


Text = Annotated[str, Field(max_length=TEXT_MAX)]
Name = Annotated[str, Field(min_length=1)]
Size = Annotated[Annotated[int, Field(ge=0, le=SIZE_MAX)] | None, BeforeValidator(_unknown_is_none)]
"""Bytes; absent, empty or 0 means unknown (what the seed's clients send)."""
JsonObject = Annotated[dict[str, Any], BeforeValidator(_json_object)]
Verify = Annotated[VerifyPolicy | None, BeforeValidator(_empty_is_none)]


class Request(BaseModel):
    """What every request has in common."""

    model_config = ConfigDict(extra="ignore", frozen=True, str_max_length=TEXT_MAX)

    @field_validator("*", mode="after")
    @classmethod
    def _strings_can_be_stored(cls, value: Any) -> Any:
        return _storable(value)


class NewObject(Request):
    """The description of an object that is to be in the catalogue."""

    filename: Name
    path: Text = ""
    machine: Name
    size: Size = None
    description: Text = ""
    originator: Text = ""
    group: Text = ""
    metadata: JsonObject = Field(default_factory=dict)

    @field_validator("filename")
    @classmethod
    def _filename_is_a_name(cls, value: str) -> str:
        if "/" in value or value in (".", ".."):
            raise ValueError("must be a file's name without '/'; the directory goes into path")
        return value


class RegisterRequest(NewObject):
    """Enter a file that exists into the catalogue."""

    verify: Annotated[Literal["none", "stat", "hash"], BeforeValidator(lambda v: v or "stat")] = "stat"
    """What to prove: nothing, that the file exists with the size given, or also its sha256."""


class CopyRequest(Request):
    """Copy an object to `dest` (directory and name in one) on `machine`, as a new object."""

    machine: Name
    dest: Name
    overwrite: bool = False
    """Replace an unregistered file at `dest`; a registered object is never replaced."""
    verify: Verify = None
    """Policy for this transfer; default the destination machine's."""


class MoveRequest(CopyRequest):
    """Move an object to `dest` on `machine`; it keeps its identifier."""


class GetExternalRequest(NewObject):
    """Fetch a URL to a new object."""

    url: Name
    protocol: Annotated[Name, BeforeValidator(lambda v: v or "http")] = "http"
    options: JsonObject = Field(default_factory=dict, repr=False)
    overwrite: bool = False
    verify: Verify = None


class DeleteRequest(Request):
    """Delete an object's file; its row stays."""


TransferRequest = CopyRequest | MoveRequest | GetExternalRequest | DeleteRequest


def validated(fields: Mapping[str, Any], model: type[M]) -> M:
    """Make a typed request of fields as HTTP, AMQP or the Prefect UI brings them.

    Raises: InvalidRequest, which names each field that is wrong and what would be right.
    """
    try:
        return model.model_validate(fields)
    except RecursionError:
        raise InvalidRequest("the fields are nested too deeply") from None
    except ValidationError as exc:
        wrong: dict[str, str] = {}
        for fault in exc.errors(include_url=False, include_input=False, include_context=False):
            name = ".".join(str(part) for part in fault["loc"]) or "body"
            wrong.setdefault(name, fault["msg"].removeprefix("Value error, "))
        # not `from exc`: pydantic's text quotes what was sent, which may hold a secret
        raise InvalidRequest("; ".join(f"{name}: {what}" for name, what in wrong.items()), wrong) from None
