"""Default names of files: from a URL, or as a server suggests; always made safe first."""

from __future__ import annotations

import posixpath
from urllib.parse import unquote, urlsplit

NAME_MAX = 200
"""Bytes of a name, in UTF-8: less than file systems take, so that a partial file's name fits as well."""
_SUFFIX_MAX = 20
_PACKED = frozenset({".gz", ".zst"})


def safe_name(text: str) -> str | None:
    """Return a file's name made of `text`, None when nothing is left of it.

    Only the part behind the last slash or backslash counts; what can't be printed goes, and dots and blanks at the
    beginning, so that the file is neither hidden nor a directory.
    """
    name = text.replace("\\", "/").rpartition("/")[2]
    name = "".join(char for char in name if char.isprintable()).strip().lstrip(". ").rstrip()
    if len(_bytes(name)) > NAME_MAX:
        stem, suffix = posixpath.splitext(name)
        if len(_bytes(suffix)) > _SUFFIX_MAX:
            stem, suffix = name, ""
        name = _bytes(stem)[: NAME_MAX - len(_bytes(suffix))].decode("utf-8", "ignore").rstrip() + suffix
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


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "replace")
