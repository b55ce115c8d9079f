"""Confinement on the machine: symbolic links are resolved there, and must not lead out of the base directory.

SFTP v3 knows no `openat`, so somebody who may write below `base_dir` can still swap a directory for a link between
this check and
the use; docs/security.md says so.
"""

from __future__ import annotations

import posixpath

from datamanager.errors import PathMissing, PathNotAllowed, RemoteFailure
from datamanager.machines import Machine
from datamanager.transports.base import FileKind, Session


def confined(session: Session, machine: Machine, place_path: str, *, follow: bool = True) -> str:
    """Return the absolute path on the machine of a normalised path below its base directory, links resolved.

    The nearest existing ancestor is resolved and compared with the resolved base directory (on HPC it often is a link
    itself).
    With `follow`, a last component that is a link is resolved too and must stay inside; without, the link itself is
    meant.

    Raises: PathNotAllowed when links lead out; RemoteFailure when the base directory does not exist.
    """
    base = real_base(session, machine)
    directory, name = posixpath.split(place_path)
    real = posixpath.join(_resolved(session, machine, base, directory), name)
    if follow and _is_link(session, real):
        try:
            real = session.real_path(real)
        except PathMissing:
            raise PathMissing(f"{machine.name}:{place_path} is a link that leads nowhere") from None
        _require_below(base, real, machine, place_path)
    return real


def relative(session: Session, machine: Machine, real: str) -> str:
    """Return a resolved path of `confined` relative to the resolved base directory: the file's one canonical place."""
    path = posixpath.relpath(real, real_base(session, machine))
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        raise PathNotAllowed(f"links lead to a directory of {machine.name} whose name is not valid UTF-8") from None
    return path


def real_base(session: Session, machine: Machine) -> str:
    """Return the machine's base directory with links resolved. Raises: RemoteFailure when it does not exist."""
    try:
        return session.real_path(machine.base_dir)
    except PathMissing:
        raise RemoteFailure(f"base_dir {machine.base_dir} does not exist on {machine.name}") from None


def _resolved(session: Session, machine: Machine, base: str, directory: str) -> str:
    """Resolve the nearest existing ancestor of a directory below base and append the rest, which does not exist yet."""
    existing, missing = directory, ""
    while existing:
        try:
            real = session.real_path(posixpath.join(base, existing))
        except PathMissing:
            # a dangling link is no missing directory: making it would write wherever it points
            if _is_link(session, posixpath.join(base, existing)):
                raise PathNotAllowed(f"{machine.name}:{existing} is a link that leads nowhere") from None
            existing, name = posixpath.split(existing)
            missing = posixpath.join(name, missing) if missing else name
        else:
            _require_below(base, real, machine, directory)
            return posixpath.join(real, missing) if missing else real
    return posixpath.join(base, missing) if missing else base


def _require_below(base: str, real: str, machine: Machine, given: str) -> None:
    if real != base and not real.startswith(base.rstrip("/") + "/"):
        raise PathNotAllowed(
            f"{machine.name}:{given} leads out of the machine's base directory through a symbolic link"
        )


def _is_link(session: Session, path: str) -> bool:
    try:
        return session.lstat(path).kind is FileKind.SYMLINK
    except PathMissing:
        return False
