"""A look at a name right behind what was done there: did it happen in the directory that was meant?

SFTP version 3 knows names, no directory handles: whoever may write below the base directory can exchange a directory
for a link between the engine's check of a path and its use. What was done then can't be undone, but it is seen. The
look is sent together with the request, so it costs no round trip: where the directory is, what has the name, and once
more where the directory is. A file that was created is there, one that was removed is not, one that was opened has the
size, owner, mode and mtime of the one at its name. A directory exchanged back in time would have to be exchanged
twice more within the look, to and fro at the right moments, to be missed; docs/security.md says what remains.
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence

from paramiko import sftp

from datamanager.errors import PathReplaced
from datamanager.transports.sftp.errors import expect
from datamanager.transports.sftp.pipeline import close_handle
from datamanager.transports.sftp.wire import Reply, Wire, string, unpack_facts, unpack_stat
from datamanager.transports.values import FileStat, from_wire, path_replaced, require_file, shown

_AGAIN = 3
"""Looks at an open file and its name, which may be growing."""


def act_and_look(wire: Wire, kind: int, path: str, *fields: bytes, there: bool) -> Reply:
    """Send a request for a name and a look behind it; return the request's reply. `there`: whether something has the
    name once it was done.

    Raises: PathReplaced when it was done, but elsewhere. A file that was opened is closed then.
    """
    with wire.joined():
        number = wire.post(kind, string(path) + b"".join(fields))
        look = _post_look(wire, path)
    reply = wire.take(number)
    seen = [wire.take(one) for one in look]
    if reply.kind == sftp.CMD_HANDLE or reply.code == sftp.SFTP_OK:
        try:
            _require(wire, path, seen, there=there)
        except PathReplaced:
            if reply.kind == sftp.CMD_HANDLE:
                close_handle(wire, reply.fields().get_string())
            raise
    return reply


def look_at_rename(wire: Wire, source: str, destination: str) -> None:
    """Look at both names of a rename that was answered well. Raises: PathReplaced when it was done elsewhere."""
    with wire.joined():
        looks = [_post_look(wire, destination), _post_look(wire, source)]
    new, old = [[wire.take(one) for one in look] for look in looks]
    _require(wire, destination, new, there=True)
    _require(wire, source, old, there=False)


def same_file(wire: Wire, handle: bytes, path: str) -> FileStat:
    """Compare an open file with what has its name; return its stat.

    Raises: PathReplaced when it is another one, or its directory leads elsewhere; RemoteFailure when the name is a
    link's.
    """
    for _ in range(_AGAIN):
        with wire.joined():
            number, look = wire.post(sftp.CMD_FSTAT, string(handle)), _post_look(wire, path)
        opened = expect(wire.take(number), sftp.CMD_ATTRS, path)
        named = _seen([wire.take(one) for one in look], path)
        if named.kind != sftp.CMD_ATTRS:
            continue
        require_file(unpack_stat(named.fields()), path)
        facts = zip(unpack_facts(opened.fields()), unpack_facts(named.fields()), strict=True)
        if all(one == other for one, other in facts if None not in (one, other)):
            return unpack_stat(opened.fields())
    raise path_replaced(f"{shown(path)}: the file that was opened is not the one that has this name")


def require_in_place(wire: Wire, directory: str) -> None:
    """Look where a directory is. Raises: PathReplaced when that is elsewhere."""
    _require_real(wire.call(sftp.CMD_REALPATH, string(directory)), directory, directory)


def _post_look(wire: Wire, path: str) -> list[int]:
    directory = string(posixpath.dirname(path) or "/")
    kinds = ((sftp.CMD_REALPATH, directory), (sftp.CMD_LSTAT, string(path)), (sftp.CMD_REALPATH, directory))
    return [wire.post(kind, name) for kind, name in kinds]


def _require(wire: Wire, path: str, look: Sequence[Reply], *, there: bool) -> None:
    wrong = {True: sftp.CMD_STATUS, False: sftp.CMD_ATTRS}[there]
    if _seen(look, path).kind != wrong:
        return
    # a server that answers several requests at once may have looked too early
    again = _seen([wire.take(one) for one in _post_look(wire, path)], path)
    missing = again.code == sftp.SFTP_NO_SUCH_FILE
    if missing if there else again.kind == sftp.CMD_ATTRS:
        what = "was made or changed, but is not there" if there else "was removed or renamed, but is still there"
        raise path_replaced(f"{shown(path)}: {what}; it may have been another file, outside of the base directory")


def _seen(look: Sequence[Reply], path: str) -> Reply:
    """Return what was seen at the name. Raises: PathReplaced when its directory is elsewhere."""
    before, named, after = look
    for reply in (before, after):
        _require_real(reply, posixpath.dirname(path) or "/", path)
    return named


def _require_real(reply: Reply, directory: str, path: str) -> None:
    if reply.kind != sftp.CMD_NAME:
        return  # nothing is known of it
    message = reply.fields()
    message.get_int()  # always one name
    real = from_wire(message.get_string())
    if posixpath.normpath(real) != posixpath.normpath(directory):
        raise path_replaced(
            f"{shown(path)}: its directory leads to {shown(real)} now; what was done there may have been done outside "
            "of the base directory"
        )
