"""A bundle in the making, as a transfer's content: its bytes, their hashes, and whether its files still are what they
were."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

from datamanager.domain.bundle_model import Pack
from datamanager.engine.bundles.format.layout import Layout
from datamanager.engine.bundles.writing.content_reader import Blamed, BundleReader, changed, same
from datamanager.errors import InternalError, PathMissing, TransportError
from datamanager.transports.port import Session
from datamanager.transports.values import Bytes, Check


class BundleDigest:
    """Fed with the uncompressed bundle from its start."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._position = 0
        self._whole = hashlib.sha256()
        self._sums: list[str] = []
        self._member = hashlib.sha256()

    def update(self, data: Bytes, /) -> None:
        """Take the next bytes."""
        start = self._position
        self._position += len(data)
        if self._layout.pack is not Pack.TAR_ZST:  # of that the compressed bytes are hashed
            self._whole.update(data)
        if self._layout.pack is not Pack.NONE:
            self._update_members(memoryview(data), start)

    @property
    def complete(self) -> bool:
        """Whether all bytes have passed."""
        return self._position == self._layout.size

    @property
    def sums(self) -> list[str]:
        """The members' sha256 (hex), in order. Raises: InternalError before all bytes have passed."""
        if not self.complete:
            raise InternalError(f"{self._position} of {self._layout.size} bytes of a bundle were hashed")
        return [self._whole.hexdigest()] if self._layout.pack is Pack.NONE else self._sums

    def hexdigest(self) -> str:
        """Return the sha256 (hex) of all bytes so far; of no use for a bundle that is to be compressed."""
        return self._whole.hexdigest()

    def _update_members(self, view: memoryview, start: int) -> None:
        while len(self._sums) < len(self._layout.entries):
            index = len(self._sums)
            first = self._layout.data(index)
            last = first + self._layout.entries[index].size
            if first < self._position:
                self._member.update(view[max(0, first - start) : max(0, last - start)])
            if last > self._position:
                break
            self._sums.append(self._member.hexdigest())
            self._member = hashlib.sha256()


class Making:
    """See `engine.attempt.Content`. `blamed` tells which entries made it fail."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.blamed: Blamed = {}
        self._digest: BundleDigest | None = None

    @contextmanager
    def open(self, session: Session) -> Iterator[BundleReader]:
        """Open it over a session of the members' machine."""
        reader = BundleReader(session, self.layout, self.blamed)
        try:
            yield reader
        finally:
            reader.close()

    def digest(self) -> BundleDigest:
        """Return a new hash, the one that counts from now on."""
        self._digest = BundleDigest(self.layout)
        return self._digest

    @property
    def hashed(self) -> BundleDigest:
        """The last hash, which was fed with everything. Raises: InternalError when there is none."""
        if self._digest is None or not self._digest.complete:
            raise InternalError("a bundle was not hashed")
        return self._digest

    def examine(self, session: Session, check: Check) -> None:
        """Find all entries that can't be read, after one was found."""
        with self.open(session) as reader:
            reader.examine(check)

    def require_unchanged(self, session: Session) -> None:
        """Look at every file once more. Raises: SourceChanged."""
        entries = self.layout.entries
        for index, now in session.bulk.lstat([entry.path for entry in entries]):
            if isinstance(now, TransportError) and not isinstance(now, PathMissing):
                self.blamed[index] = now
            elif isinstance(now, PathMissing) or not same(entries[index], now):
                self.blamed[index] = changed(entries[index])
        if self.blamed:
            raise next(iter(self.blamed.values()))
