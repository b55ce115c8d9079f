"""New names for files of this host."""

from __future__ import annotations

import contextlib
import errno
import os

from datamanager.errors import PathMissing, TransportError
from datamanager.transports.local.files import os_errors

_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


def rename(source: str, destination: str, *, overwrite: bool) -> None:
    """Give a file its new name; not flushed to stable storage. See the port's `rename`."""
    with os_errors(destination if os.path.lexists(source) else source):
        if overwrite:
            os.rename(source, destination)
        else:
            _rename_to_free_name(source, destination)


def remove(path: str) -> None:
    """Remove a file."""
    with os_errors(path):
        os.unlink(path)


def _rename_to_free_name(source: str, destination: str) -> None:
    """Rename by link and unlink, which never replaces; both names exist for a moment, or one only if that fails.

    Where links don't exist the name is looked at first, and one that appears in between is replaced.

    Raises: OSError; PermissionDenied and the like, naming the source, when it can't be taken away.
    """
    try:
        os.link(source, destination, follow_symlinks=False)
    except OSError as exc:
        if exc.errno not in _NO_LINKS:
            raise
        if os.path.lexists(destination):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), destination) from exc
        os.rename(source, destination)
        return
    try:
        remove(source)
    except PathMissing:
        return  # the new name is the only one now, as was wanted: NFS answers so when it repeats an unlink
    except TransportError:
        # As sftp-server does it: left there, our own link would be in the way of the next try. The last name is never
        # taken, though: an unlink over a network may fail and yet have been done.
        with contextlib.suppress(OSError):
            if os.path.samestat(os.lstat(source), os.lstat(destination)):
                os.unlink(destination)
        raise
