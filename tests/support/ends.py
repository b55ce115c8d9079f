"""Machines and their folders, and jobs for the engine between places on them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from uuid import uuid4

from datamanager.domain.location import Place
from datamanager.domain.states import TransferKind
from datamanager.engine.attempt import Attempt, Endpoint
from datamanager.machines import Machine, Machines
from datamanager.transports.factory import Storages


class Ends:
    """Machines of an engine's test, by name."""

    def __init__(self, machines: dict[str, Machine], control_dir: Path) -> None:
        self.machines = machines
        self.storages = Storages(Machines(machines), control_dir)

    def folder(self, name: str) -> Path:
        """Return a machine's base_dir."""
        return Path(self.machines[name].base_dir)

    def end(self, name: str, path: str) -> Endpoint:
        """Return one end of a transfer."""
        machine = self.machines[name]
        return Endpoint(Place.of(machine, path), machine, self.storages.get(name))

    def job(self, source: str, destination: str, kind: TransferKind = TransferKind.COPY, **rules: object) -> Attempt:
        """Describe a transfer between places written `machine:path`."""
        ends = [self.end(*text.split(":", 1)) for text in (source, destination)]
        return replace(Attempt(uuid4(), 1, kind, ends[0], ends[1]), **rules)  # type: ignore[arg-type]
