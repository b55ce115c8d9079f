"""A bundle in the making, as a transfer's content: its bytes, their hashes, and whether its files still are what they
were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from datamanager.engine.bundles.format.layout import Layout
from datamanager.engine.bundles.writing.content_reader import Blamed, BundleReader, changed, same
from datamanager.engine.bundles.writing.digests import BundleDigest
from datamanager.errors import InternalError, PathMissing, TransportError
from datamanager.transports.port import Session
from datamanager.transports.values import Check


class Making:
    """See `engine.content.Content`. `blamed` tells which entries made it fail."""

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
