"""The request can't be accepted as it is; nothing was changed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self

from datamanager.errors.root import DataManagerError


class RequestError(DataManagerError, code="invalid_request"):
    """The request cannot be accepted; nothing was changed."""


class NotAuthenticated(RequestError, code="not_authenticated"):
    """The request has no token, or one that is wrong, unknown or expired."""


class NotAllowed(RequestError, code="not_allowed"):
    """A scope for this is missing, or was withdrawn."""


class MalformedBody(RequestError, code="malformed_body"):
    """The body can't be parsed at all."""


class InvalidRequest(RequestError, code="invalid_request"):
    """A field is missing or invalid; `fields` maps each field's name to the values allowed."""

    def __init__(self, detail: str, fields: dict[str, str] | None = None, *, retryable: bool | None = None) -> None:
        super().__init__(detail, retryable=retryable)
        self.fields = fields or {}

    @classmethod
    def of(cls, fields: dict[str, str]) -> Self:
        """Return the error whose detail names these fields, each with what would be right."""
        return cls("; ".join(f"{name}: {wanted}" for name, wanted in fields.items()), fields)


class UnknownMachine(RequestError, code="unknown_machine"):
    """The machine is not in machines.toml."""

    def __init__(self, machine: str, known: Iterator[str] | list[str] | tuple[str, ...] = ()) -> None:
        names = ", ".join(sorted(known)) or "none"
        super().__init__(f"machine {machine!r} is not configured; configured: {names}")
        self.machine = machine


class PathNotAllowed(RequestError, code="path_not_allowed"):
    """The path leaves the machine's base directory, or is not a valid path."""


class UrlNotAllowed(RequestError, code="url_not_allowed"):
    """The URL is refused: its scheme, its host's address, or its host does not resolve."""


class RegisteredSizeMismatch(RequestError, code="size_mismatch"):
    """The size given at registration differs from the file's."""


class CredentialUnknown(RequestError, code="credential_unknown"):
    """No stored credential has this name."""


class CredentialUnusable(RequestError, code="credential_unusable"):
    """The stored credential can't be read, or does not name the hosts that it may be sent to."""


class CredentialNotAllowed(RequestError, code="credential_not_allowed"):
    """The stored credential may not be sent to this host."""


class IdempotencyMismatch(RequestError, code="idempotency_mismatch"):
    """The Idempotency-Key was used for another request."""


class OriginNotAllowed(RequestError, code="origin_not_allowed"):
    """The request's Host or Origin is foreign."""


class ConnectionNotSecure(RequestError, code="connection_not_secure"):
    """The request came over a network without TLS."""


class CsrfTokenMissing(RequestError, code="csrf_token_missing"):
    """The request has a browser's session, and not the token that only our own pages know."""


class NotSupported(RequestError, code="not_supported"):
    """The protocol, option or operation is not supported."""


class QuotaExceeded(RequestError, code="quota_exceeded", retryable=True):
    """A group or person would have more than its quota allows."""


class TooManyRequests(RequestError, code="too_many_requests", retryable=True):
    """A group or person sends more requests per second than its quota allows."""


class TooManyStreams(RequestError, code="too_many_streams", retryable=True):
    """The client receives as many listings of all objects as it may at once."""
