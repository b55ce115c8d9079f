"""One file in an archive from outside, and the rules for it.

A member that breaks a rule is refused alone, and becomes an item of the task that says why. The limits of counts and
sizes are the whole archive's.
"""

from __future__ import annotations

import math
import posixpath
import unicodedata
from collections.abc import Iterable
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


@dataclass(frozen=True, slots=True)
class Refused:
    """A member that can't be had: its name (anything), and why, as the end of a sentence."""

    name: str
    why: str

    @property
    def printable(self) -> str:
        """The name, with escapes for what can't be shown or stored."""
        return "".join(
            sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in self.name[:PATH_MAX]
        )

    @property
    def error(self) -> DownloadFailed:
        """What the member ends in."""
        return DownloadFailed(f"the archive's member {shown(self.name)} {self.why}")


@dataclass(frozen=True, slots=True)
class ArchiveListing:
    """What is in an archive: the files to extract, and what can't be had."""

    members: list[Packed]
    refused: list[Refused]


def shown(name: str) -> str:
    """Return a member's name fit for a message: it may hold anything."""
    short = name if len(name) <= _NAME_SHOWN else f"{name[:_NAME_SHOWN]}…"
    return repr(short)


def clamped(mtime: float) -> int:
    """Return a modification time that SFTP can carry; what is no time at all is 1970."""
    return int(min(max(mtime, 0), _MTIME_MAX)) if math.isfinite(mtime) else 0


def sound(found: Iterable[Packed | Refused], machine: Machine, directory: str, limit: int) -> ArchiveListing:
    """Return the members in order, each judged by the rules; `limit`: bytes of all of them together. Of two with one
    name the later one is taken, as `tar` and `unzip -o` do.

    Raises: TooLarge.
    """
    members, refused, directories = dict[str, Packed](), list[Refused](), set[str]()
    total = stored = 0
    for one in found:
        why = one.why if isinstance(one, Refused) else _unfit_name(one.name, machine, directory)
        if isinstance(one, Refused) or why is not None:
            refused.append(Refused(one.name[:PATH_MAX], why or ""))
        else:
            name = "/".join(_parts(one.name))
            if members.pop(name, None) is not None:
                refused.append(Refused(name, "comes twice; the later one is taken"))
            members[name] = replace(one, name=name)
            total, stored = total + one.size, stored + one.stored
            _add_directories(directories, name)
        if len(members) + len(refused) > MEMBERS_MAX:
            raise TooLarge(f"the archive contains more than {MEMBERS_MAX} files")
        if total > limit:
            raise TooLarge(f"the archive's files exceed the {limit} bytes allowed")
        if total > RATIO_FROM and total > RATIO_MAX * stored:
            raise TooLarge(f"the archive's files are more than {RATIO_MAX} times their stored size")
    return ArchiveListing(list(members.values()), refused)


def _add_directories(directories: set[str], name: str) -> None:
    above = posixpath.dirname(name)
    while above and above not in directories:
        directories.add(above)
        above = posixpath.dirname(above)
    if len(directories) > DIRECTORIES_MAX:
        raise TooLarge(f"the archive's files are in more than {DIRECTORIES_MAX} directories")


def _unfit_name(name: str, machine: Machine, directory: str) -> str | None:
    """Return why a member can't be stored under its name; None when it can.

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
    if wrong is None:
        try:
            Place.of(machine, directory, name)
        except PathNotAllowed as exc:
            wrong = f"can't be stored: {exc.detail}"
    return wrong


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]
