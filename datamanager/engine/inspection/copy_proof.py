"""Before a copy is deleted, both are looked at where they lie: the one that remains (its file, or the bundle that has
it) and the one that goes.

What the catalogue says was true once. A file may have been changed, cut short or lost since, and two objects may even
be one file under the names of two machines that share a file system.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Literal

from datamanager.engine.attempt import Endpoint
from datamanager.engine.control import Control
from datamanager.engine.path_confinement import confined
from datamanager.engine.single.same_file import is_one_name
from datamanager.engine.single.verify import stored_sha256
from datamanager.errors import PathMissing
from datamanager.transports.values import FileKind


def why_not_proved(
    end: Endpoint, size: int | None, sha256: str, how: Literal["checksum", "size"], control: Control
) -> str | None:
    """Look at a file or bundle; return why it is not what it should be, None when it is. Reads all of it with
    `checksum`, on the machine itself where that can. By `size` nothing of unknown size is proved. Blocks.

    Raises: what the transports raise when the machine can't be reached, the reason that `control` was stopped with.
    """
    with end.storage.session(control.check) as session:
        try:
            path = confined(session, end.machine, end.place.path)
            found = session.stat(path)
        except PathMissing:
            return f"{end.place} does not exist"
        if found.kind is not FileKind.FILE:
            return f"{end.place} is not a regular file"
        if size is not None and found.size != size:
            return f"{end.place} has {found.size:,} bytes instead of {size:,}"
        if how == "size":
            return None if size is not None else f'{end.place} is of unknown size; prove = "checksum" would read it'
        if end.machine.stage_poll:
            words = [word.replace("{path}", path) for word in end.machine.stage_poll]
            if session.programs.run(words, control.watch) != 0:
                return f'{end.place} is on tape; prove = "size" would not read it'
        try:
            if stored_sha256(session, path, control.watch) != sha256:
                return f"{end.place} has a different sha256 than the catalogue"
            again = session.stat(path)
        except PathMissing:
            return f"{end.place} disappeared while it was read"
        if not again.is_version(found):
            return f"{end.place} changed while it was read"
    return None


def why_no_copy(
    end: Endpoint, size: int | None, sha256: str, how: Literal["checksum", "size"], control: Control
) -> str | None:
    """Look at the file that is to go; return why it is no copy (other bytes were written to it since it was
    registered, which may be nowhere else), None when it is one, or is gone already. Blocks.

    Raises: as `why_not_proved`.
    """
    with end.storage.session(control.check) as session:
        try:
            session.lstat(confined(session, end.machine, end.place.path))
        except PathMissing:
            return None
    return why_not_proved(end, size, sha256, how, control)


def why_one_file(going: Endpoint, staying: Endpoint, control: Control) -> str | None:
    """Say whether two places are the same file, which must not be deleted as a copy of itself; None when they
    are two. A file that is gone already is nobody's. Links are followed; directories are compared as
    `single.same_file` does. Blocks.

    Raises: what the transports raise.
    """
    with ExitStack() as stack:  # in the sequence of their names, as `single.endpoints.acquire_sessions` does
        storages = {one.machine.name: one.storage for one in (going, staying)}
        sessions = {name: stack.enter_context(storages[name].session(control.check)) for name in sorted(storages)}
        near, far = sessions[going.machine.name], sessions[staying.machine.name]
        try:
            path = confined(near, going.machine, going.place.path)
            near.stat(path)
        except PathMissing:
            return None
        theirs = confined(far, staying.machine, staying.place.path)
        if is_one_name((near, path), (far, theirs)):
            return f"{going.place} and {staying.place} are the same file"
    return None
