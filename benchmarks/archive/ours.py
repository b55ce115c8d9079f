"""The engine that archives and recalls, and copies the same files, step by step as the flows do it; sha256 verified."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from uuid import UUID, uuid4

from benchmarks.ours import Ours
from datamanager.domain.bundle_model import Manifest, Pack, VerifyLevel, WantedMember, bundle_place
from datamanager.domain.location import Place
from datamanager.domain.states import Route, TransferKind
from datamanager.engine.attempt import Attempt, Endpoint
from datamanager.engine.bundles import bundle_upload as archive
from datamanager.engine.bundles import recall
from datamanager.engine.bundles.bundle_content import ArchiveAttempt
from datamanager.engine.bundles.stored_bundle import StoredBundle
from datamanager.engine.control import Control
from datamanager.engine.single import staged_file
from datamanager.machines import Machine, VerifyPolicy
from flows.archive.bundling import TOGETHER


class Archiving(Ours):
    """The engine with the storages of some machines. Leaving its context closes them."""

    def copy_files(
        self,
        source: tuple[Machine, str],
        destination: tuple[Machine, str],
        small: Sequence[str],
        large: Sequence[str],
        at_once: int,
    ) -> None:
        """Copy files: small ones together by a tar stream, `at_once` of the large ones. Names are below both places."""
        (origin, above), (target, below) = source, destination
        if small:
            self.copy_tree(source, destination, small, packed=True, policy=VerifyPolicy.SHA256)

        def copy(name: str) -> None:
            self.copy((origin, f"{above}/{name}"), (target, f"{below}/{name}"), VerifyPolicy.SHA256, Route.RELAY)

        with ThreadPoolExecutor(at_once) as pool:
            list(pool.map(copy, large))

    def archive(
        self, source: tuple[Machine, str], directory: tuple[Machine, str], names: Sequence[str], pack: Pack
    ) -> list[Manifest]:
        """Make bundles of files, as large as those of a request; the files stay. `names`: below the source."""
        (origin, above), (target, below) = source, directory
        wanted = [WantedMember(uuid4(), Place.of(origin, above, name)) for name in names]
        made = partial(self._bundle, origin, target, below, pack=pack)
        return [made(wanted[start : start + TOGETHER]) for start in range(0, len(wanted), TOGETHER)]

    def recall(self, made: Manifest, uuid: UUID, archive: Machine, destination: tuple[Machine, str]) -> None:
        """Bring one member back."""
        [member] = [one for one in made.members if one.uuid == uuid]
        ends = Endpoint(made.bundle.place, archive, self.storage(archive)), self._end(*destination)
        job, control = Attempt(uuid4(), 1, TransferKind.COPY, *ends, verify=VerifyPolicy.SHA256), Control()
        staged_file.publish(recall.stage_large(job, made.bundle, member, control), control)

    def sums(self, made: Manifest, archive: Machine) -> dict[str, str]:
        """Read a bundle from its storage; return the sha256 (hex) of the files in it, by their names."""
        sums = dict[str, str]()
        with self.storage(archive).session() as session:
            with StoredBundle.find(session, archive, made.bundle).open(session) as reader:
                for member in made.members:
                    digest = hashlib.sha256()
                    for block in reader.blocks(member.offset, member.size):
                        digest.update(block)
                    sums[member.source.name] = digest.hexdigest()
        return sums

    def _bundle(
        self, origin: Machine, target: Machine, directory: str, wanted: Sequence[WantedMember], *, pack: Pack
    ) -> Manifest:
        bundle = uuid4()
        end = Endpoint(bundle_place(target, directory, bundle, pack), target, self.storage(target))
        level, storage = VerifyLevel.CHECKSUMS, self.storage(origin)
        job = ArchiveAttempt(uuid4(), 1, bundle, pack, level, origin, storage, tuple(wanted), end, "benchmarks")
        staged = archive.stage(job, Control())
        if staged.ready is None or staged.failed:
            raise RuntimeError(f"not all files were archived: {[*staged.failed.values()][:1]}")
        archive.publish(staged.ready)
        return staged.ready.manifest
