"""A machine with an archive on it, which is listed and extracted as a mover does it."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import pytest

from datamanager.domain.location import Place
from datamanager.engine.bulk import bulk_publish
from datamanager.engine.bulk.bulk_chunk import BulkEndpoints, BulkRules, Deferred, Failed, Staged
from datamanager.engine.control import Control
from datamanager.engine.extracting import member_staging
from datamanager.engine.extracting.archive_listing import Packaging, members_of
from datamanager.engine.extracting.archive_member import Packed
from datamanager.engine.extracting.member_staging import StoredArchive
from datamanager.engine.single import staged_file
from datamanager.errors import (
    DataManagerError,
)
from datamanager.machines import Machine
from tests.support.ends import Ends


class Workbench:
    """A machine with an archive on it."""

    def __init__(self, folder: Path) -> None:
        (folder / "m").mkdir()
        machine = Machine.model_validate({"name": "m", "transport": "local", "base_dir": str(folder / "m")})
        self.folder = folder / "m"
        self.machine = machine
        self.ends = Ends({"m": machine}, folder / "run")
        self.archive = self.folder / ".archive.dmpart"
        self.told: dict[str, str] = {}
        """Of the archive that was listed last: the members that can't be had, and why."""

    def listed(self, data: bytes, kind: Packaging, directory: str = "in", limit: int = 2**40) -> list[Packed]:
        """Put an archive there and list it."""
        self.archive.write_bytes(data)
        with self.ends.end("m", "x").storage.session() as session:
            listing = members_of(session, str(self.archive), kind, self.machine, directory, limit, lambda: None)
        self.told = {one.printable: one.error.detail for one in listing.refused}
        return listing.members

    def alone(self, data: bytes, kind: Packaging, directory: str = "in") -> str:
        """List an archive of which one member can't be had, and another, `good`, can; return why."""
        assert [one.name for one in self.listed(data, kind, directory)] == ["good"]
        (why,) = self.told.values()
        assert why.isprintable()
        assert len(why) < 300
        return why

    def refused(self, error: type[DataManagerError], data: bytes, kind: Packaging, **rules: int | str) -> str:
        """List what must be refused; return why."""
        with pytest.raises(error) as caught:
            self.listed(data, kind, **rules)  # type: ignore[arg-type]
        assert not caught.value.retryable
        return caught.value.detail

    def extracted(self, members: list[Packed]) -> dict[str, bytes | DataManagerError]:
        """Extract members as a mover does: small ones together, the others one by one; return what came of each."""
        lying, transfer = StoredArchive(str(self.archive), self.archive.stat().st_size), uuid4()
        items = [
            member_staging.ExtractItem(
                n, one, Place("m", f"archive/{one.name}"), Place.of(self.machine, "in", one.name)
            )
            for n, one in enumerate(members)
        ]
        results: dict[str, bytes | DataManagerError] = {}
        storage = self.ends.end("m", "x").storage
        with storage.session_pair() as (source, sink):
            ends = BulkEndpoints(source, sink, self.machine, self.machine)
            found = member_staging.stage_small(ends, lying, items, BulkRules(transfer, 1), Control())
            staged = [one for one in found if isinstance(one, Staged)]
            assert not any(bulk_publish.publish(sink, staged, overwrite=False))
        results |= {members[one.number].name: one.error for one in found if isinstance(one, Failed)}
        for later in [one for one in found if isinstance(one, Deferred)]:
            member = members[later.number]
            job = self.ends.job(f"m:archive/{later.number}", f"m:in/{member.name}")
            try:
                ready = member_staging.stage_large(job, lying, member, Control(), lambda _: None)
                staged_file.publish(ready, Control())
            except DataManagerError as error:
                results[member.name] = error
        for member in members:
            file = self.folder / "in" / member.name
            if member.name not in results:
                results[member.name] = file.read_bytes()
                assert (file.stat().st_mtime, file.stat().st_mode & 0o7777) == (member.mtime, 0o644)
        assert not list(self.folder.rglob(".*dmpart*")) or list(self.folder.rglob(".*dmpart*")) == [self.archive]
        return results
