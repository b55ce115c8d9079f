"""Errors of a machine, or of the way to it."""

from __future__ import annotations

from datamanager.errors.root import DataManagerError


class TransportError(DataManagerError):
    """A machine, or the connection to it, failed."""

    code = "remote_error"


class MachineUnavailable(TransportError):
    """The machine can't be reached."""

    code = "machine_unavailable"
    retryable = True


class ConnectionLost(TransportError):
    """The connection broke."""

    code = "connection_lost"
    retryable = True


class TransportTimeout(TransportError):
    """The other side stalled: no progress within the time allowed."""

    code = "timeout"
    retryable = True


class HostKeyMismatch(TransportError):
    """The machine's host key is unknown, revoked or different from the pinned one."""

    code = "host_key_mismatch"


class AuthenticationFailed(TransportError):
    """The machine refused our login."""

    code = "authentication_failed"


class PermissionDenied(TransportError):
    """The machine's file system refused access."""

    code = "permission_denied"


class NoSpace(TransportError):
    """The destination has no space (or no quota) left."""

    code = "no_space"


class PathMissing(TransportError):
    """The path does not exist."""

    code = "path_missing"


class PathExists(TransportError):
    """The path exists already; it was not changed."""

    code = "path_exists"


class RemoteFailure(TransportError):
    """The remote side reported an error without a code of its own."""

    code = "remote_error"
