"""The composition root that the API and the mover share: settings in, connected parts out."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from datamanager.machines import Machines, load_machines, missing_files
from datamanager.settings import Settings
from datamanager.signing.configured import signer_for
from datamanager.signing.signer import Signer
from datamanager.sources.network.egress_guard import EgressGuard
from datamanager.transports.factory import Storages
from deployments.noted_signer import NotedSigner
from models.database import Database
from models.machines.base_dirs import check_base_dirs
from models.migrate import require_current

COLLECT_AFTER = 50_000
"""Objects that may be made, and not yet gone, before Python looks for cycles among the newest: some megabytes."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Runtime:
    """A process's connected parts. `close` releases them."""

    settings: Settings
    machines: Machines
    database: Database
    storages: Storages
    guard: EgressGuard
    """Which addresses may be downloaded from."""

    def close(self) -> None:
        """Close connections to machines and the database."""
        self.storages.close()
        self.database.close()


def open_runtime(settings: Settings, *, pool_size: int = 10) -> Runtime:
    """Connect a process to the catalogue and prepare its machines.

    Raises: SettingsError when machines.toml is wrong, the schema is not this code's, or a base_dir changed unconfirmed;
    CatalogueUnavailable.
    """
    machines = load_machines(settings.machines_file).with_archives(settings.archive_rules)
    signer: Signer | None = signer_for(settings, machines)
    guard = EgressGuard(settings.download_allow, settings.download_deny)
    directory = run_directory(settings)
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    database = Database(settings.catalogue_url, pool_size=pool_size)
    require_current(database)
    with database.write() as session:
        check_base_dirs(session, machines, confirmed=settings.confirm_base_dir)
    if signer is not None:
        signer = NotedSigner(signer, database)
    return Runtime(settings, machines, database, Storages(machines, directory, signer), guard)


def spare_what_stays() -> None:
    """Have Python's collector pass over all that is in memory now, for processes that have started: modules and models
    stay until the end. Each full collection would look at them, and 10,000 items of a batch bring several. And have it
    look for cycles after COLLECT_AFTER new objects instead of 700.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER, 20, 10)


def tell_missing(machines: Machines, tell: Callable[[str], object] = log.warning) -> None:
    """Tell what the machines name on this host that is not there: their transfers would fail, others work."""
    for machine in machines.values():
        for said in missing_files(machine).values():
            tell(said)


def run_directory(settings: Settings) -> Path:
    """Return the folder where the processes of this host find each other's sockets."""
    return settings.home / "run"
