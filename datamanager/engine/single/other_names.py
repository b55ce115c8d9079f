"""Whether a machine may have a file under two names at all, which is cheap to ask before names are compared
(`single.same_file`); and whether a name is one of its bundles' directory.
"""

from __future__ import annotations

import posixpath
import re
import unicodedata
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from datamanager.domain.location import require_outside_archive
from datamanager.engine.path_confinement import confined, real_base, relative
from datamanager.errors import DataManagerError, PathMissing
from datamanager.machines import Machine, TransportKind
from datamanager.transports.port import Session
from datamanager.transports.values import FileStat, from_wire

_MOUNTS = "/proc/self/mountinfo"
"""What Linux tells of mounts (proc_pid_mountinfo(5)): the third word is the device, the fifth the mount point."""


def has_other_spelling(session: Session, machine: Machine, paths: Sequence[str], base: str | None = None) -> bool:
    """Say whether one of some places that exist is found by another spelling too: its machine may fold names. `base`:
    the machine's `real_base`, where the caller has it."""
    base = real_base(session, machine) if base is None else base
    others = [posixpath.join(base, other) for path in paths for other in _spellings(path)]
    return any(isinstance(found, FileStat) for _, found in session.bulk.lstat(others))


def bundles_directory(session: Session, machine: Machine) -> str | None:
    """Return the canonical path of an archive's bundles below base_dir; None on other machines, or if it is not there.
    Raises: PathNotAllowed when links lead out of base_dir.
    """
    if machine.archive:
        with suppress(PathMissing):
            return relative(session, machine, confined(session, machine, machine.archive_dir))
    return None


def require_no_bundles(session: Session, machine: Machine, canonical: str) -> None:
    """Check that a canonical path (`path_confinement.relative`) is not where an archive's bundles are, wherever links
    have put them. Raises: PathNotAllowed.
    """
    require_outside_archive(machine, canonical)
    require_outside_archive(machine, canonical, bundles_directory(session, machine))


def may_be_mounted_twice(session: Session, machine: Machine) -> bool | None:
    """Say whether a directory below base_dir may be another one too by a bind mount; None if the machine does not tell
    its mounts.
    """
    base = real_base(session, machine).rstrip("/") + "/"
    try:
        told = Path(_MOUNTS).read_bytes() if machine.transport is TransportKind.LOCAL else _read(session, _MOUNTS)
    except OSError:
        return None
    except DataManagerError as exc:
        if exc.retryable:
            raise
        return None
    words = [line.split() for line in told.splitlines()]
    mounts = [(from_wire(_octal(line[4])).rstrip("/") + "/", line[2]) for line in words]
    if not mounts:
        return None
    around = dict(mounts)[max((point for point, _ in mounts if base.startswith(point)), key=len)]
    devices = [around, *(device for point, device in mounts if point.startswith(base) and point != base)]
    return len(set(devices)) < len(devices)


def _read(session: Session, path: str) -> bytes:
    with session.open_read(session.real_path(path)) as reader:  # `self` is a link
        return b"".join(reader.blocks())


def _octal(word: bytes) -> bytes:
    return re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8)]), word)


def _spellings(path: str) -> set[str]:
    """Return other spellings of a path, each from one of its directories on: where names are folded, one is found."""
    others, parts = set[str](), path.split("/")
    for change in (_swapped, partial(unicodedata.normalize, "NFC"), partial(unicodedata.normalize, "NFD")):
        others |= {"/".join([*parts[:index], *map(change, parts[index:])]) for index in range(len(parts))}
    return others - {path}


def _swapped(text: str) -> str:
    return "".join(other if len(other := char.swapcase()) == 1 else char for char in text)
