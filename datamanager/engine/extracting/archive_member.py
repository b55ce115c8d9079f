"""One file in an archive from outside, and the rules for it.

A member that breaks a rule makes the whole archive refused: a client could not tell from the objects that some are
missing.
"""

from __future__ import annotations

import math
import posixpath
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from datamanager.domain.location import NAME_MAX, PATH_MAX, Place
from datamanager.errors import DownloadFailed, PathNotAllowed, TooLarge
from datamanager.machines import Machine
from datamanager.transports.values import FileKind, FileStat

MEMBERS_MAX = 10_000
"""Files that one archive may hold, as many as a batch has items."""
DIRECTORIES_MAX = 2 * MEMBERS_MAX
"""Directories that its files may need."""
RATIO_MAX = 200
"""Bytes that one compressed byte may become …"""
RATIO_FROM = 64 * 2**20
"""… in an archive that becomes more than this."""
MODE = 0o644
"""Permission bits of what is extracted, whatever the archive says, as of everything that is downloaded."""

_CONTROLS = frozenset({"Cc", "Cs", "Zl", "Zp"})
"""Categories of characters that are in no name: controls, surrogates (bytes that are no Unicode), ends of lines."""
_NAME_SHOWN = 100
_MTIME_MAX = 2**32 - 1  # SFTP version 3


@dataclass(frozen=True, slots=True)
class Packed:
    """A regular file in an archive: `stored` bytes from `offset` on become `size` bytes.

    `mtime` in seconds since 1970; `crc` (CRC-32 of the whole file) where the archive has one.
    """

    name: str
    offset: int
    stored: int
    size: int
    mtime: int
    deflated: bool = False
    crc: int | None = None

    @property
    def stat(self) -> FileStat:
        """What it is as a file."""
        return FileStat(FileKind.FILE, self.size, self.mtime, MODE)


def shown(name: str) -> str:
    """Return a member's name fit for a message: it may hold anything."""
    short = name if len(name) <= _NAME_SHOWN else f"{name[:_NAME_SHOWN]}…"
    return repr(short)


def clamped(mtime: float) -> int:
    """Return a modification time that SFTP can carry; what is no time at all is 1970."""
    return int(min(max(mtime, 0), _MTIME_MAX)) if math.isfinite(mtime) else 0


def sound(members: Iterable[Packed], machine: Machine, directory: str, limit: int) -> Iterator[Packed]:
    """Yield the members in order, each checked by the rules; `limit`: bytes of all of them together.

    Raises: PathNotAllowed, DownloadFailed (a name that can't be, or comes twice), TooLarge.
    """
    seen, directories = set[str](), set[str]()
    total = stored = 0
    for member in members:
        name = _checked_name(member.name, machine, directory)
        if name in seen:
            raise DownloadFailed(f"the archive contains {shown(member.name)} twice")
        seen.add(name)
        if len(seen) > MEMBERS_MAX:
            raise TooLarge(f"the archive contains more than {MEMBERS_MAX} files")
        above = posixpath.dirname(name)
        while above and above not in directories:
            directories.add(above)
            above = posixpath.dirname(above)
        if len(directories) > DIRECTORIES_MAX:
            raise TooLarge(f"the archive's files are in more than {DIRECTORIES_MAX} directories")
        total, stored = total + member.size, stored + member.stored
        if total > limit:
            raise TooLarge(f"the archive's files exceed the {limit} bytes allowed")
        if total > RATIO_FROM and total > RATIO_MAX * stored:
            raise TooLarge(f"the archive's files are more than {RATIO_MAX} times their stored size")
        yield replace(member, name=name)


def _checked_name(name: str, machine: Machine, directory: str) -> str:
    """Return a member's name as a path from the directory on, `./a//b` as `a/b`.

    Without a directory of the request's a name in front may not begin with a dot: `.ssh/authorized_keys` is not an
    archive's to write where the base directory is somebody's home.
    """
    parts = _parts(name)
    wrong = None
    if name.startswith("/") or ".." in parts:
        wrong = "leads out of its directory"
    elif any(unicodedata.category(sign) in _CONTROLS for sign in name):
        wrong = "has control characters, or is not Unicode"
    elif not parts:
        wrong = "names no file"
    elif len(name.encode()) > PATH_MAX or any(len(part.encode()) > NAME_MAX for part in parts):
        wrong = "is too long"
    elif parts[0].startswith(".") and _parts(directory) in ([], _parts(machine.base_dir)):
        wrong = "begins with a dot; set path to a directory"
    if wrong is not None:
        raise DownloadFailed(f"the archive's member {shown(name)} {wrong}")
    try:
        Place.of(machine, directory, name)
    except PathNotAllowed as exc:
        raise DownloadFailed(f"the archive's member {shown(name)} can't be stored: {exc.detail}") from exc
    return "/".join(parts)


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]
