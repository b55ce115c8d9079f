"""The one place where an SFTP server's statuses become our errors.

Version 3 has few codes, and OpenSSH answers a plain FAILURE for most of errno (EEXIST, ENOSPC, EDQUOT, EXDEV, EROFS).
Callers that can find out more (is something there? is space left?) look at the code first; codes above 8 are those of
later drafts, which some version 3 servers send.
"""

from __future__ import annotations

from paramiko import sftp

from datamanager.errors import (
    ConnectionLost,
    NoSpace,
    PathExists,
    PathMissing,
    PermissionDenied,
    RemoteFailure,
    TransportError,
)
from datamanager.transports.sftp.wire import Reply
from datamanager.transports.values import from_wire, shown, to_wire

SPACE_IS_GONE = 1 << 20
"""Free bytes below which a bare FAILURE of a write is taken for a full file system."""
_SAFE_TEXT = 200
_ERRORS: dict[int, type[TransportError]] = {
    sftp.SFTP_NO_SUCH_FILE: PathMissing,
    sftp.SFTP_PERMISSION_DENIED: PermissionDenied,
    sftp.SFTP_NO_CONNECTION: ConnectionLost,
    sftp.SFTP_CONNECTION_LOST: ConnectionLost,
    10: PathMissing,  # NO_SUCH_PATH
    11: PathExists,  # FILE_ALREADY_EXISTS
    12: PermissionDenied,  # WRITE_PROTECT
    14: NoSpace,  # NO_SPACE_ON_FILESYSTEM
    15: NoSpace,  # QUOTA_EXCEEDED
}


def status_error(reply: Reply, path: str) -> TransportError:
    """Return the error for a reply that is not the wanted one."""
    code = reply.code
    if code is None:
        return RemoteFailure(f"{shown(path)}: the server answered with packet {reply.kind}, which does not fit")
    message = reply.fields()
    message.get_int()
    text = from_wire(message.get_string())
    # a quota has no code in version 3; the server's own text is all there is
    kind = NoSpace if code == sftp.SFTP_FAILURE and "quota" in text.lower() else _ERRORS.get(code, RemoteFailure)
    safe = to_wire(text.replace("\0", "")).decode("utf-8", "replace")[:_SAFE_TEXT]
    return kind(f"{shown(path)}: {safe or 'status'} (SFTP {code})")


def check(reply: Reply, path: str) -> None:
    """Return when the reply is a status OK, else raise its error."""
    if reply.code != sftp.SFTP_OK:
        raise status_error(reply, path)


def expect(reply: Reply, kind: int, path: str) -> Reply:
    """Return the reply when it is of this kind, else raise its error."""
    if reply.kind != kind:
        raise status_error(reply, path)
    return reply


def write_error(reply: Reply, path: str, full: bool) -> TransportError:
    """Return the error for a write that was refused; `full` says whether the file system is."""
    if reply.code != sftp.SFTP_FAILURE:
        return status_error(reply, path)
    if full:
        return NoSpace(f"{shown(path)}: the file system is full")
    error = status_error(reply, path)
    return type(error)(error.detail, retryable=True)  # it may have been full until files were removed
