"""Errors of requests that can't be accepted as they are; nothing was changed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self

from datamanager.errors.root import DataManagerError


class RequestError(DataManagerError):
    """The request cannot be accepted; nothing was changed."""

    code = "invalid_request"


class MalformedBody(RequestError):
    """The body can't be parsed at all."""

    code = "malformed_body"


class InvalidRequest(RequestError):
    """A field is missing or invalid; `fields` maps each field's name to the values allowed."""

    code = "invalid_request"

    def __init__(self, detail: str, fields: dict[str, str] | None = None, *, retryable: bool | None = None) -> None:
        super().__init__(detail, retryable=retryable)
        self.fields = fields or {}

    @classmethod
    def of(cls, fields: dict[str, str]) -> Self:
        """Return the error whose detail names these fields, each with what would be right."""
        return cls("; ".join(f"{name}: {wanted}" for name, wanted in fields.items()), fields)


class UnknownMachine(RequestError):
    """The machine is not in machines.toml."""

    code = "unknown_machine"

    def __init__(self, machine: str, known: Iterator[str] | list[str] | tuple[str, ...] = ()) -> None:
        names = ", ".join(sorted(known)) or "none"
        super().__init__(f"machine {machine!r} is not configured; configured: {names}")
        self.machine = machine


class PathNotAllowed(RequestError):
    """The path leaves the machine's base directory, or is not a valid path."""

    code = "path_not_allowed"


class UrlNotAllowed(RequestError):
    """The URL is refused: its scheme, its host's address, or its host does not resolve."""

    code = "url_not_allowed"


class RegisteredSizeMismatch(RequestError):
    """The size given at registration differs from the file's."""

    code = "size_mismatch"


class CredentialUnknown(RequestError):
    """No stored credential has this name."""

    code = "credential_unknown"


class CredentialUnusable(RequestError):
    """The stored credential can't be read, or does not name the hosts that it may be sent to."""

    code = "credential_unusable"


class CredentialNotAllowed(RequestError):
    """The stored credential may not be sent to this host."""

    code = "credential_not_allowed"


class IdempotencyMismatch(RequestError):
    """The Idempotency-Key was used for another request."""

    code = "idempotency_mismatch"


class OriginNotAllowed(RequestError):
    """The request's Host or Origin is foreign."""

    code = "origin_not_allowed"


class NotSupported(RequestError):
    """The protocol, option or operation is not supported."""

    code = "not_supported"
