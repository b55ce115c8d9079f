"""Sweeps on both databases, of a local machine and of one behind a real sshd: what goes, and what never does."""

from __future__ import annotations

import errno
import os
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from datamanager.domain.location import temporary_name
from datamanager.engine.bulk.bulk_chunk import item_id, part_name
from datamanager.engine.control import Control
from datamanager.errors import Cancelled, RemoteFailure
from datamanager.machines import Machine, TransportKind
from flows.cleanup.sweeping import Sweeper, Swept
from models.audit import scan_queries
from models.database import Database, now
from models.tables import Transfer, TransferItem
from tests.support.auditing import OLD, Plant

DAY = 86_400.0


def sweep(plant: Plant, older_than: float = DAY, *, dry_run: bool = False, control: Control | None = None) -> Swept:
    return Sweeper(plant.services, plant.machine, older_than, control or Control(), dry_run=dry_run).sweep()


def transfer(database: Database, *, ended: bool = False, items: int = 0, **values: Any) -> UUID:
    """Enter a transfer, as far as sweeps look at it."""
    new = uuid4()
    with database.write() as session:
        time = now(session)
        row = {"kind": "copy_many" if items else "copy", "request": {}, "faults": [], "notes": {}, **values}
        session.add(Transfer(id=new, created=time, ended=time - timedelta(hours=1) if ended else None, **row))
        for number in range(items):
            session.add(
                TransferItem(
                    transfer_id=new, number=number, object_id=uuid4(), destination_machine="here", dest="x", notes={}
                )
            )
    return new


@pytest.mark.dialect
def test_whose_partial_files_are_still_needed(database: Database) -> None:
    living, ended = transfer(database), transfer(database, ended=True)
    batch, done = transfer(database, items=3), transfer(database, items=3, ended=True)
    wanted = {one.hex[:8]: one for one in (living, ended, batch, done, uuid4(), item_id(batch, 2), item_id(done, 2))}
    with database.read() as session:
        found = scan_queries.open_owners(session, wanted)
        assert scan_queries.open_owners(session, []) == set()
    assert {wanted[one] for one in found} == {living, batch, item_id(batch, 2)}


def test_orphans_go_and_the_rest_stays(plant: Plant) -> None:
    living, ended, batch = (
        transfer(plant.database),
        transfer(plant.database, ended=True),
        transfer(plant.database, items=2),
    )
    plant.register("run/kept")
    orphans = [
        plant.write(f"run/{temporary_name('a.nc', uuid4(), 3)}", b"x" * 100),
        plant.write(f"run/{temporary_name('b.nc', ended, 1)}", b"x" * 100),
        plant.write(f"run/{temporary_name('ü' * 200, uuid4(), 1)}", b"x" * 100),
    ]
    young = plant.write(f"run/{temporary_name('young', uuid4(), 1)}")
    os.utime(young)
    stay = [
        young,
        plant.write(f"run/{temporary_name('c.nc', living, 1)}"),
        plant.write(f"run/{part_name(batch, 1, 'd.nc', 2)}"),
        plant.write(f"run/{temporary_name('e.nc', item_id(batch, 1), 2)}"),
        plant.write("run/mine.dmpart"),
        plant.write("run/.x.12345678.1.dmpart.bak"),
        plant.write(f"other/{temporary_name('a.nc', uuid4(), 3)}"),  # nothing of ours is in that directory
    ]
    before = sorted(plant.folder.rglob("*"))
    tried = sweep(plant, dry_run=True)
    assert sorted(plant.folder.rglob("*")) == before
    assert (tried.removed, tried.freed, tried.spared) == (3, 300, 5)
    swept = sweep(plant)
    assert (swept.removed, swept.freed, swept.spared, swept.unlisted) == (3, 300, 5, 0)
    assert not any(file.exists() for file in orphans)
    assert all(file.exists() for file in stay)
    assert sorted(plant.folder.rglob("*")) == sorted(set(before) - set(orphans))  # nor has it left anything of its own
    words = {str(line["place"]): line["what"] for line in swept.lines}
    assert words["run/mine.dmpart"] == "stays: not the name of a partial file"
    assert sweep(plant).removed == 0


def test_directories_where_transfers_failed_are_swept_too(plant: Plant) -> None:
    failed = transfer(
        plant.database, ended=True, status="ERROR", destination_machine="here", destination_place="new/dir/x.nc"
    )
    part = plant.write(f"new/dir/{temporary_name('x.nc', failed, 1)}")
    assert sweep(plant).removed == 1
    assert not part.exists()


def test_registered_prefixes_are_no_reason_to_leave_out_the_rest(plant: Plant) -> None:
    """Prefixes say where all files should be known; partial files lie where transfers have written."""
    changed = {**plant.machine.model_dump(exclude_none=True), "audit_prefixes": ["in"]}
    some = Plant(plant.database, Machine.model_validate(changed), plant.folder, plant.services.settings.home)
    failed = transfer(
        some.database, ended=True, status="ERROR", destination_machine="here", destination_place="new/x.nc"
    )
    some.register("run/one")
    parts = [
        some.write(f"{directory}/{temporary_name('x.nc', owner, 1)}")
        for directory, owner in (("in/deep", uuid4()), ("new", failed), ("run", uuid4()))
    ]
    swept = sweep(some)
    some.services.storages.close()
    assert not any(part.exists() for part in parts)
    assert swept.removed == 3


def test_a_full_machine_is_swept_too(tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no room for the file that tells the machine's time; that is when sweeping matters."""
    machine = Machine(name="here", transport=TransportKind.LOCAL, base_dir=str(tmp_path))
    plant = Plant(database, machine, tmp_path, tmp_path / "home")
    plant.register("run/one")
    part = plant.write(f"run/{temporary_name('x', uuid4(), 1)}")
    opened = os.open

    def full(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if flags & os.O_CREAT and "clock" in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return opened(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", full)
    assert sweep(plant).removed == 1
    assert not part.exists()


def test_the_report_is_text_whatever_the_names(plant: Plant) -> None:
    plant.register("run/one")
    with open(os.fsencode(plant.folder / "run") + b"/.\xff.dmpart", "wb") as file:
        file.write(b"x")
    (line,) = sweep(plant).lines
    assert str(line["place"]).encode("utf-8") == b"run/.\\udcff.dmpart"


def test_links_are_not_followed_out(plant: Plant, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    part = outside / temporary_name("x", uuid4(), 1)
    part.write_bytes(b"x")
    os.utime(part, (OLD, OLD))
    plant.register("run/one")
    (plant.folder / "run/one").unlink()
    (plant.folder / "run").rmdir()
    (plant.folder / "run").symlink_to(outside)
    swept = sweep(plant)
    assert (swept.removed, swept.unlisted) == (0, 1)
    assert part.exists()


def test_a_part_is_never_younger_than_minutes(plant: Plant) -> None:
    plant.register("run/one")
    part = plant.write(f"run/{temporary_name('x', uuid4(), 1)}")
    os.utime(part)
    assert sweep(plant, older_than=0).removed == 0


def test_it_stops_when_it_is_told(plant: Plant) -> None:
    plant.register("run/one")
    part = plant.write(f"run/{temporary_name('x', uuid4(), 1)}")
    control = Control()
    control.stop(Cancelled("cancelled in Prefect"))
    with pytest.raises(Cancelled):
        sweep(plant, control=control)
    assert part.exists()


def test_a_missing_base_directory_is_an_error(plant: Plant) -> None:
    plant.folder.rmdir()
    with pytest.raises(RemoteFailure):
        sweep(plant)
