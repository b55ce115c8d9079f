"""Our contender: the engine itself, step by step as the flows do it, over a connected pool.

probe → transfer → verify → publish, with the temporary name, fsync and the free-space check that a transfer has.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self
from uuid import uuid4

from datamanager.domain.location import Place
from datamanager.domain.states import Route, TransferKind
from datamanager.engine.attempt import Attempt, Endpoint, Found, Intent, Moved
from datamanager.engine.bulk import bulk_publish, bulk_staging
from datamanager.engine.bulk.bulk_chunk import BulkEndpoints, BulkRules, SmallItem, Staged
from datamanager.engine.control import Control
from datamanager.engine.fetching.download import download
from datamanager.engine.fetching.replica_fetch import ExpectedBytes, FetchContext
from datamanager.engine.single import publish
from datamanager.engine.single import transfer as stream
from datamanager.engine.single.probe import probe
from datamanager.engine.single.verify import verify
from datamanager.machines import Machine, Machines, VerifyPolicy
from datamanager.sources.download_terms import parse_download
from datamanager.sources.network.egress_guard import EgressGuard
from datamanager.sources.network.source_context import SourceContext
from datamanager.transports.factory import Storages
from datamanager.transports.port import Storage
from flows.steps.batch import AT_ONCE

LARGEST_DOWNLOAD = 1 << 40
DATE = 1_600_000_000
"""The mtime of what is downloaded, seconds since 1970."""


class Ours:
    """The engine with the storages of some machines. Leaving its context closes them."""

    def __init__(self, machines: list[Machine], control_dir: Path) -> None:
        self._machines = Machines({machine.name: machine for machine in machines})
        self._storages = Storages(self._machines, control_dir)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._storages.close()

    def storage(self, machine: Machine) -> Storage:
        """Return a machine's storage."""
        return self._storages.get(machine.name)

    def connect(self) -> None:
        """Have all sessions of each pool open, as they are in a mover at work."""
        for machine in self._machines.values():
            with ExitStack() as lent:
                for _ in range(machine.max_connections):
                    lent.enter_context(self.storage(machine).session()).real_path(machine.base_dir)

    def copy(
        self,
        source: tuple[Machine, str],
        destination: tuple[Machine, str],
        policy: VerifyPolicy,
        route: Route | None = None,
    ) -> None:
        """Copy one file; places are a machine and a path below its base_dir. `route` is the one that must be taken."""
        job = Attempt(uuid4(), 1, TransferKind.COPY, self._end(*source), self._end(*destination), verify=policy)
        control = Control()
        found = probe(job)
        if route is not None and found.route is not route:
            raise RuntimeError(f"the plan is {found.route}, to be measured is {route}")
        moved = stream.send(job, found, control)
        self._finish(job, found, moved, control, found.source_stat.mtime)

    def push(self, source: tuple[Machine, str], destination: tuple[Machine, str], policy: VerifyPolicy) -> None:
        """Let one machine push a file to another."""
        job = Attempt(uuid4(), 1, TransferKind.COPY, self._end(*source), self._end(*destination), verify=policy)
        control = Control()
        found = probe(job)
        moved = stream.push(job, found, control)
        if moved is None:
            raise RuntimeError("the source did not push the file; the relay is not what is to be measured")
        self._finish(job, found, moved, control, found.source_stat.mtime)

    def copy_tree(
        self,
        source: tuple[Machine, str],
        destination: tuple[Machine, str],
        names: Sequence[str],
        *,
        packed: bool,
        policy: VerifyPolicy = VerifyPolicy.SIZE,
    ) -> None:
        """Copy many small files as a batch does, `AT_ONCE` at a time. `names`: below both places.

        `packed`: by tar streams.
        """
        (origin, above), (target, below) = source, destination
        items = [
            SmallItem(number, Place.of(origin, above, name), Place.of(target, below, name))
            for number, name in enumerate(names)
        ]
        transfer = uuid4()
        for start in range(0, len(items), AT_ONCE):
            with self.storage(origin).session() as here, self.storage(target).session() as there:
                ends, rules = BulkEndpoints(here, there, origin, target), BulkRules(transfer, 1, policy, packed=packed)
                outcomes = bulk_staging.stage(ends, items[start : start + AT_ONCE], rules, Control())
                staged = [one for one in outcomes if isinstance(one, Staged)]
                errors = [error for error in bulk_publish.publish(there, staged, overwrite=False) if error is not None]
            if errors or len(staged) != len(outcomes):
                raise RuntimeError(f"not all files were copied: {[*errors, *outcomes][:1]}")

    def fetch(
        self, url: str, destination: tuple[Machine, str], policy: VerifyPolicy, ca_file: Path | None = None
    ) -> None:
        """Fetch a URL of this host to a machine; `ca_file` is what a TLS server there must prove itself by."""
        job = Attempt(uuid4(), 1, TransferKind.GETEXTERNAL, None, self._end(*destination), verify=policy)
        control = Control()
        found = probe(job)
        guard = EgressGuard(["127.0.0.0/8"])
        opened = parse_download(url, "http", {}).open(SourceContext(guard, LARGEST_DOWNLOAD, ca_file=ca_file))
        moved = download(FetchContext(job, found, control, ExpectedBytes(LARGEST_DOWNLOAD)), opened.sources)
        self._finish(job, found, moved, control, DATE)

    def _finish(self, job: Attempt, found: Found, moved: Moved, control: Control, mtime: int) -> None:
        proof = verify(job, found, moved, control)
        publish.publish(job, found, Intent(proof.size, proof.sha256, mtime))

    def _end(self, machine: Machine, path: str) -> Endpoint:
        return Endpoint(Place.of(machine, path), machine, self.storage(machine))
