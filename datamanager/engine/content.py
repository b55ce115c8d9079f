"""What a transfer reads where that is no file as it lies there: a bundle in the making, a member of a bundle."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from datamanager.transports.port import Reader, Session
from datamanager.transports.values import Bytes


class Digest(Protocol):
    """A hash that is fed in order; hashlib's are."""

    def update(self, data: Bytes, /) -> None:
        """Take the next bytes."""

    def hexdigest(self) -> str:
        """Return the sha256 (hex) of all bytes so far."""


class Content(Protocol):
    """A virtual file: it has a size and bytes at every offset, and may be read over several sessions at once."""

    def open(self, session: Session) -> AbstractContextManager[Reader]:
        """Open it over a session of its machine. Raises: what makes it unreadable, maybe only while it is read."""

    def digest(self) -> Digest:
        """Return a new hash for all of its bytes."""

    def require_unchanged(self, session: Session) -> None:
        """Look whether it still is what was read. Raises: SourceChanged."""
