"""Places, where objects lie, checked where they are made; and names of files: partial files, defaults from a URL.

A `Place` with `..`, NUL, an absolute part or a name the file system can't hold does not exist. Symbolic links can
only be judged on the machine; the engine does that before each use (`engine.path_confinement`).
"""

from __future__ import annotations

import hashlib
import posixpath
import re
import unicodedata
from dataclasses import dataclass
from typing import NamedTuple, Self
from urllib.parse import unquote, urlsplit
from uuid import UUID

from datamanager.errors import PathNotAllowed
from datamanager.machines import Machine

NAME_MAX = 255  # bytes, POSIX
PATH_MAX = 4096
PART_SUFFIX = ".dmpart"
DEFAULT_NAME_MAX = 200
"""Bytes of a name that we choose: less than file systems take, so that a partial file's name fits as well."""
_SUFFIX_MAX = 20
_PACKED = frozenset({".gz", ".zst"})
_PART = re.compile(rf"\..+\.([0-9a-f]{{8}})\.(0|[1-9]\d{{0,9}}){re.escape(PART_SUFFIX)}", re.DOTALL)


class Place(NamedTuple):
    """A machine and a normalised path below its `base_dir`: `a/b/c`, never absolute, never empty."""

    machine: str
    path: str

    @classmethod
    def of(cls, machine: Machine, *parts: str) -> Self:
        """Make the place of `parts` (a directory and a name, or a path and name in one) on `machine`.

        An absolute path is accepted when it lies below the machine's `base_dir`.

        Raises: PathNotAllowed.
        """
        given = "/".join(part for part in parts if part)
        path = _below(machine.base_dir, given) if given.startswith("/") else given
        if path.endswith("/"):
            raise PathNotAllowed(f"{given!r} ends with '/': a file name is required")
        return cls(machine.name, _normalised(path, given))

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path.rpartition("/")[2]

    @property
    def directory(self) -> str:
        """The file's directory below `base_dir`; empty for that itself."""
        return self.path.rpartition("/")[0]

    def __str__(self) -> str:
        return f"{self.machine}:{self.path}"


def folded(name: str) -> str:
    """Return what a name has in common with all those that some file system takes for the same: names that differ in
    case or Unicode form only.
    """
    if name.isascii():
        return name.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def require_outside_archive(machine: Machine, path: str, archive_dir: str | None = None) -> None:
    """Check that a path below base_dir is not where an archive's bundles are; `archive_dir`: the canonical path of
    these, if links lead to it. Raises: PathNotAllowed.
    """
    if machine.archive and f"{path}/".startswith(f"{archive_dir or machine.archive_dir}/"):
        raise PathNotAllowed(
            f"{machine.name}:{path} is below archive_dir ({machine.archive_dir}), where only bundles lie"
        )


def split_dest(dest: str) -> tuple[str, str]:
    """Split a destination (path and name in one) into directory and name as the client gave them."""
    directory, _, name = dest.rpartition("/")
    return (directory or "/" if dest.startswith("/") else directory), name


def normalised_prefix(machine: Machine | None, given: str) -> str:
    """Normalise a directory to compare with places: relative to `base_dir`, no trailing slash, "" for the base
    itself.
    """
    if given.startswith("/"):
        given = _below(machine.base_dir, f"{given}/") if machine is not None else given.lstrip("/")
    given = given.strip("/")
    return _normalised(given, given) if given not in ("", ".") else ""


def temporary_name(name: str, transfer: UUID, epoch: int) -> str:
    """Name an attempt's partial file: `.{name}.{transfer8}.{epoch}.dmpart`, at most 255 bytes.

    The epoch is in the name, so an attempt can never write into, or clean up, another one's file.
    """
    return _hidden(name, f".{transfer.hex[:8]}.{epoch}{PART_SUFFIX}")


def aside_name(name: str, transfer: UUID) -> str:
    """Name a source that is about to be removed: `.{name}.{transfer8}.aside.dmpart`, at most 255 bytes.

    All attempts have the same name for it, so a later one finds what an earlier one left. It is no partial file's name:
    what has it may be the only copy, and is never removed unseen.
    """
    return _hidden(name, f".{transfer.hex[:8]}.aside{PART_SUFFIX}")


def _hidden(name: str, tail: str) -> str:
    if len(name) < NAME_MAX - len(tail) and name.isascii():
        return f".{name}{tail}"
    raw = name.encode("utf-8", "surrogateescape")
    if len(raw) > NAME_MAX - 1 - len(tail):  # names of one batch that begin alike must not become the same
        tail = f"~{hashlib.sha256(raw).hexdigest()[:8]}{tail}"
    kept = raw[: NAME_MAX - 1 - len(tail)].decode("utf-8", "ignore")
    return f".{kept}{tail}"


@dataclass(frozen=True, slots=True)
class Part:
    """What a partial file's name says: the first 8 hex digits of whose it is (a transfer, or an item of one), and of
    which attempt.
    """

    owner: str
    epoch: int


def read_part(name: str) -> Part | None:
    """Read a name that `temporary_name` gives; None for any other, however it ends."""
    found = _PART.fullmatch(name)
    if found is None or len(name.encode("utf-8", "surrogateescape")) > NAME_MAX:
        return None
    return Part(found[1], int(found[2]))


def spared(part: Part | None, age: float, older_than: float, *, open_owner: bool) -> str | None:
    """Say why a file that ends like a partial file stays; None: it may go. Ages in seconds, by the machine's clock."""
    if part is None:
        return "not the name of a partial file"
    if open_owner:
        return "its transfer has not ended"
    if age < older_than:
        return f"younger than {older_than:.0f} s"
    return None


def extracting_place(machine: Machine, directory: str, name: str) -> Place:
    """Make the place beside which an archive lies while its files are extracted: a name that no file ever gets.

    Two requests for the same archive have the same one. Raises: PathNotAllowed.
    """
    as_file = Place.of(machine, directory, name)
    digest = hashlib.sha256(as_file.name.encode()).hexdigest()
    return Place.of(machine, directory, f".{digest[:16]}.extracting")


def safe_name(text: str) -> str | None:
    """Return a file's name made of `text`, None when nothing is left of it.

    Only the part behind the last slash or backslash counts; what can't be printed goes, and dots and blanks at the
    beginning, so that the file is neither hidden nor a directory.
    """
    name = text.replace("\\", "/").rpartition("/")[2]
    name = "".join(char for char in name if char.isprintable()).strip().lstrip(". ").rstrip()
    if len(_bytes(name)) > DEFAULT_NAME_MAX:
        stem, suffix = posixpath.splitext(name)
        if len(_bytes(suffix)) > _SUFFIX_MAX:
            stem, suffix = name, ""
        name = _bytes(stem)[: DEFAULT_NAME_MAX - len(_bytes(suffix))].decode("utf-8", "ignore").rstrip() + suffix
    return name or None


def name_of_url(url: str) -> str | None:
    """Return a file's name made of the last part of a URL's path, None when it has none."""
    try:
        path = urlsplit(url).path
    except ValueError:
        return None
    return safe_name(unquote(path.rpartition("/")[2], errors="replace"))


def unpacked_name(name: str) -> str:
    """Return the name of what a packed file holds: without `.gz` or `.zst`."""
    stem, suffix = posixpath.splitext(name)
    return stem if suffix.lower() in _PACKED else name


def _below(base_dir: str, given: str) -> str:
    # lexical, after folding doubled slashes; links are judged on the machine
    folded = "/" + "/".join(part for part in given.split("/") if part not in ("", "."))
    if given.endswith("/"):
        folded += "/"
    base = base_dir.rstrip("/")
    if not folded.startswith(base + "/"):
        raise PathNotAllowed(f"{given!r} is not below the machine's base directory {base_dir!r}")
    return folded[len(base) + 1 :]


def _normalised(path: str, given: str) -> str:
    if "\0" in path:
        raise PathNotAllowed("a path cannot contain a NUL character")
    try:
        size = len(path.encode("utf-8"))
    except UnicodeEncodeError:
        raise PathNotAllowed("a path must be valid Unicode") from None
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if not parts:
        raise PathNotAllowed(f"{given!r} does not name a file")
    if ".." in parts:
        raise PathNotAllowed(f"{given!r} contains '..', which is not allowed")
    # a path that is no longer than a name may be has no name that is
    if size > PATH_MAX or (size > NAME_MAX and any(len(part.encode("utf-8")) > NAME_MAX for part in parts)):
        raise PathNotAllowed(f"a name is limited to {NAME_MAX} bytes, a path to {PATH_MAX}")
    if PART_SUFFIX in path and any(part.endswith(PART_SUFFIX) for part in parts):
        raise PathNotAllowed(f"names that end with {PART_SUFFIX} are reserved for running transfers")
    return "/".join(parts)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "replace")
