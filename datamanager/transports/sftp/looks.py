"""A look at a name right behind what was done there: did it happen in the directory that was meant?

SFTP version 3 knows names, no directory handles: whoever may write below the base directory can exchange a directory
for a link between the engine's check of a path and its use. What was done then can't be undone, but it is seen. The
look is sent together with the request, so it costs no round trip: where the directory is, what has the name, and once
more where the directory is, several times. A file that was created is there, one that was removed is not, one that was
opened has the size, owner, mode and mtime of the one at its name. To be missed, a directory that was exchanged back in
time has to be exchanged to and fro within each look, at the right moments; docs/security.md says what remains.
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from itertools import pairwise

from paramiko import sftp

from datamanager.errors import PathReplaced
from datamanager.transports.sftp.errors import expect
from datamanager.transports.sftp.pipeline import close_handle
from datamanager.transports.sftp.wire import Reply, Wire, string, unpack_facts, unpack_stat
from datamanager.transports.values import FileStat, from_wire, path_replaced, require_file, shown

_LAST, _RENAMED, _MADE = 4, 2, 1
"""How often a look looks. A directory that is exchanged all the time is elsewhere in half of them. Nothing later shows
that another file was read or removed; a rename is looked at three times; what was made is used by its name again."""
_AGAIN = 3
"""Looks at an open file and its name, which may be growing."""


def act_and_look(wire: Wire, kind: int, path: str, *fields: bytes, there: bool) -> Reply:
    """Send a request for a name and a look behind it; return the request's reply. `there`: whether something has the
    name once it was done.

    Raises: PathReplaced when it was done, but elsewhere. A file that was opened is closed then.
    """
    return act_and_see(wire, kind, path, *fields, there=there)[0]


def act_and_see(wire: Wire, kind: int, path: str, *fields: bytes, there: bool) -> tuple[Reply, Reply]:
    """Do `act_and_look`; return the request's reply, and that to the first LSTAT behind it."""
    with wire.joined():
        number = wire.post(kind, string(path) + b"".join(fields))
        look = _post_look(wire, path, _MADE if there else _LAST)
    reply = wire.take(number)
    seen = [wire.take(one) for one in look]
    if reply.kind == sftp.CMD_HANDLE or reply.code == sftp.SFTP_OK:
        try:
            _require(wire, path, seen, there=there)
        except PathReplaced:
            if reply.kind == sftp.CMD_HANDLE:
                close_handle(wire, reply.fields().get_string())
            raise
    return reply, seen[1]


def begin_look(wire: Wire, path: str) -> list[int]:
    """Begin to look at a name; return the requests' numbers, which must be taken or forgotten."""
    with wire.joined():
        return _post_look(wire, path, _RENAMED)


def look_at_rename(wire: Wire, before: Sequence[int], source: str, destination: str) -> None:
    """Look at both names of a rename that was answered well; `before`: the look at the source that was begun before.

    Servers rename by a link and an unlink, which may happen in two directories: the file that has the new name must
    have the owner and mode of the one that was meant. Raises: PathReplaced when it was done elsewhere.
    """
    with wire.joined():
        looks = [_post_look(wire, destination, _RENAMED), _post_look(wire, source, _RENAMED)]
    was, new, old = [[wire.take(one) for one in look] for look in (before, *looks)]
    _require(wire, destination, new, there=True)
    _require(wire, source, old, there=False)
    meant = [_owner_and_mode(one) for one in [*_seen(was, source), *_seen(new, destination)]]
    if any(None not in (one, other) and one != other for one, other in pairwise(meant)):
        raise path_replaced(f"{shown(destination)}: another file than {shown(source)} has this name now")


def same_file(wire: Wire, handle: bytes, path: str) -> FileStat:
    """Compare an open file with what has its name; return its stat.

    Raises: PathReplaced when it is another one, or its directory leads elsewhere; RemoteFailure when the name is a
    link's.
    """
    for _ in range(_AGAIN):
        with wire.joined():
            number, look = wire.post(sftp.CMD_FSTAT, string(handle)), _post_look(wire, path, _LAST)
        opened = expect(wire.take(number), sftp.CMD_ATTRS, path)
        named = _seen([wire.take(one) for one in look], path)
        if all(_alike(opened, one, path) for one in named):
            return unpack_stat(opened.fields())
    raise path_replaced(f"{shown(path)}: the file that was opened is not the one that has this name")


def require_in_place(wire: Wire, directory: str, asked: int) -> None:
    """Take the answer (request `asked`) to where a directory is. Raises: PathReplaced when that is elsewhere."""
    _require_real(wire.take(asked), directory, directory)


def _post_look(wire: Wire, path: str, times: int) -> list[int]:
    """Ask where the directory is, what has the name, where the directory is, and so on."""
    directory = (sftp.CMD_REALPATH, string(posixpath.dirname(path) or "/"))
    kinds = [directory, *[(sftp.CMD_LSTAT, string(path)), directory] * times]
    return [wire.post(kind, name) for kind, name in kinds]


def _seen(look: Sequence[Reply], path: str) -> Sequence[Reply]:
    """Return what was seen at the name. Raises: PathReplaced when its directory was elsewhere."""
    for reply in look[0::2]:
        _require_real(reply, posixpath.dirname(path) or "/", path)
    return look[1::2]


def _require(wire: Wire, path: str, look: Sequence[Reply], *, there: bool) -> None:
    if not any(_wrong(one, there=there) for one in _seen(look, path)):
        return
    # a server that answers several requests at once may have looked too early
    again = _seen([wire.take(one) for one in _post_look(wire, path, _LAST)], path)
    if any(_wrong(one, there=there) for one in again):
        what = "was made or changed, but is not there" if there else "was removed or renamed, but is still there"
        raise path_replaced(f"{shown(path)}: {what}; it may have been another file, outside of the base directory")


def _wrong(named: Reply, *, there: bool) -> bool:
    """Say whether what was seen at a name is not as it should be; what the server can't tell is not wrong."""
    return named.code == sftp.SFTP_NO_SUCH_FILE if there else named.kind == sftp.CMD_ATTRS


def _owner_and_mode(named: Reply) -> tuple[int | None, ...] | None:
    return unpack_facts(named.fields())[1:4] if named.kind == sftp.CMD_ATTRS else None


def _alike(opened: Reply, named: Reply, path: str) -> bool:
    """Say whether two stats can be one file's. Raises: RemoteFailure when the second one is no file's."""
    if named.kind != sftp.CMD_ATTRS:
        return named.code != sftp.SFTP_NO_SUCH_FILE
    require_file(unpack_stat(named.fields()), path)
    facts = zip(unpack_facts(opened.fields()), unpack_facts(named.fields()), strict=True)
    return all(one == other for one, other in facts if None not in (one, other))


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
