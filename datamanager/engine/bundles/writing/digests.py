"""The sha256 of every member, and of the whole, while a bundle's bytes pass in order."""

from __future__ import annotations

import hashlib

from datamanager.domain.archive.bundle_model import Pack
from datamanager.engine.bundles.format.layout import Layout
from datamanager.errors import InternalError
from datamanager.transports.values import Bytes


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
