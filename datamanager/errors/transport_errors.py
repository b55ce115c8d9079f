"""Errors of a machine, or of the way to it."""

from __future__ import annotations

from datamanager.errors.root import DataManagerError


class TransportError(DataManagerError, code="remote_error"):
    """A machine, or the connection to it, failed."""


class MachineUnavailable(TransportError, code="machine_unavailable", retryable=True):
    """The machine can't be reached."""


class ConnectionLost(TransportError, code="connection_lost", retryable=True):
    """The connection broke."""


class TransportTimeout(TransportError, code="timeout", retryable=True):
    """The other side stalled: no progress within the time allowed."""


class HostKeyMismatch(TransportError, code="host_key_mismatch"):
    """The machine's host key is unknown, revoked or different from the pinned one."""


class AuthenticationFailed(TransportError, code="authentication_failed"):
    """The machine refused our login."""


class NoLogin(TransportError, code="no_login"):
    """The machine is used with the login of who asks, and none of theirs is known."""


class LoginOutput(TransportError, code="login_output"):
    """The machine's login scripts print text where SFTP is expected."""


class PermissionDenied(TransportError, code="permission_denied"):
    """The machine's file system refused access."""


class NoSpace(TransportError, code="no_space"):
    """The destination has no space (or no quota) left."""


class PathMissing(TransportError, code="path_missing"):
    """The path does not exist."""


class PathExists(TransportError, code="path_exists"):
    """The path exists already; it was not changed."""


class PathReplaced(TransportError, code="path_replaced"):
    """A directory of the path was replaced, as by a link, while it was used; the detail says what was done by then."""


class RemoteFailure(TransportError, code="remote_error"):
    """The remote side reported an error without a code of its own."""
