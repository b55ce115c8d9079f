"""An object whose file a transfer did not find becomes UNKNOWN by itself, once a second look agrees; and not before."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID, uuid4

import pytest
from sqlalchemy import select, update

from datamanager.domain.requests import CopyManyRequest, CopyRequest
from datamanager.domain.states import TransferKind
from datamanager.errors import PermissionDenied, SourceMissing
from flows.cleanup.second_looks import look_again
from models.audit.missing_objects import PREFIX, SECOND_LOOK
from models.batches import results
from models.database import now
from models.submission import SealedRequest, submit
from models.tables import Lease
from models.transfers import outcomes, queue
from tests.support.auditing import Plant
from tests.support.bookkeeping import claims, told

LEASE = timedelta(seconds=60)


def notes(plant: Plant) -> list[str]:
    with plant.database.read() as session:
        return list(session.scalars(select(Lease.name).where(Lease.name.startswith(PREFIX))))


def submitted(plant: Plant, request: SealedRequest) -> UUID:
    with plant.database.write() as session:
        return submit(session, plant.services.machines, request).id


def begun(plant: Plant, transfer: UUID) -> queue.TransferLease:
    with plant.database.write() as session:
        (hold,) = queue.take(session, "mover", LEASE, 1, only=transfer)
    with plant.database.write() as session:
        queue.begin(session, hold, uuid4())
    return hold


def copy_fails(plant: Plant, uuid: UUID, error: Exception | None = None) -> None:
    """Have a copy of an object fail as when its file is not found."""
    request = CopyRequest(machine=plant.machine.name, dest=f"copy-{uuid4()}")
    hold = begun(plant, submitted(plant, SealedRequest(TransferKind.COPY, request, uuid, grant=None)))
    with plant.database.write() as session:
        outcomes.fail(session, hold, error or SourceMissing("no such file"))  # type: ignore[arg-type]


def pass_time(plant: Plant) -> None:
    """Let a second look be due."""
    with plant.database.write() as session:
        earlier = now(session) - SECOND_LOOK
        session.execute(update(Lease).where(Lease.name.startswith(PREFIX)).values(until=earlier))


@pytest.mark.dialect
def test_look_again_makes_a_lost_object_unknown(plant: Plant) -> None:
    lost, kept = plant.register("in/a"), plant.register("in/b")
    plant.folder.joinpath("in/a").unlink()
    copy_fails(plant, lost)
    copy_fails(plant, lost)
    assert notes(plant) == [f"{PREFIX}{lost}"]
    assert look_again(plant.services) == 0  # not yet
    assert plant.get(lost).status == "ACTIVE"
    pass_time(plant)
    assert look_again(plant.services) == 1
    assert (plant.get(lost).status, plant.get(kept).status) == ("UNKNOWN", "ACTIVE")
    assert {row[2] for row in claims(plant.database)} == {kept}, "its place is free"
    assert told(plant.database, lost)[-1] == "dm.object.lost"
    assert notes(plant) == []
    assert look_again(plant.services) == 0


def test_look_again_leaves_a_file_that_is_back(plant: Plant) -> None:
    uuid = plant.register("a")
    copy_fails(plant, uuid)
    pass_time(plant)
    assert look_again(plant.services) == 0
    assert (plant.get(uuid).status, notes(plant)) == ("ACTIVE", [])


def test_look_again_believes_no_empty_base_dir(plant: Plant) -> None:
    lost, other = plant.register("a"), plant.register("b")
    for name in "ab":
        plant.folder.joinpath(name).unlink()
    copy_fails(plant, lost)
    pass_time(plant)
    assert look_again(plant.services) == 0  # as when the file system is not mounted
    assert (plant.get(lost).status, len(notes(plant))) == ("ACTIVE", 1)
    plant.write("b")
    pass_time(plant)
    assert look_again(plant.services) == 1
    assert plant.get(other).status == "ACTIVE"


def test_look_again_finds_the_only_object_lost(plant: Plant) -> None:
    lost = plant.register("a")
    plant.folder.joinpath("a").unlink()
    copy_fails(plant, lost)
    pass_time(plant)
    assert look_again(plant.services) == 1
    assert plant.get(lost).status == "UNKNOWN"


def test_look_again_changes_nothing_that_was_changed_or_is_claimed(plant: Plant) -> None:
    claimed, changed = plant.register("a"), plant.register("b")
    plant.write("c")
    for uuid, name in ((claimed, "a"), (changed, "b")):
        plant.folder.joinpath(name).unlink()
        copy_fails(plant, uuid)
    hold = begun(
        plant,
        submitted(
            plant, SealedRequest(TransferKind.COPY, CopyRequest(machine="here", dest="under-way"), claimed, grant=None)
        ),
    )
    with plant.database.write() as session:
        row = plant.get(changed)
        row.date_modified = now(session)
        session.merge(row)
    pass_time(plant)
    assert look_again(plant.services) == 0
    assert [plant.get(uuid).status for uuid in (claimed, changed)] == ["ACTIVE", "ACTIVE"]
    assert notes(plant) == [f"{PREFIX}{claimed}"]
    with plant.database.write() as session:
        outcomes.fail(session, hold, PermissionDenied("no"))
    pass_time(plant)
    assert look_again(plant.services) == 1


def test_items_of_batches_are_noted_too_and_other_errors_are_not(plant: Plant) -> None:
    one, two, three = (plant.register(name) for name in "abc")
    items = [{"uuid": str(uuid), "machine": "here", "dest": f"out/{uuid}"} for uuid in (one, two)]
    request = SealedRequest(TransferKind.COPY_MANY, CopyManyRequest.model_validate({"items": items}), grant=None)
    hold = begun(plant, submitted(plant, request))
    with plant.database.write() as session:
        results.fail_items(session, hold, [(0, SourceMissing("no such file")), (1, PermissionDenied("no"))])
    copy_fails(plant, three, PermissionDenied("no"))
    assert notes(plant) == [f"{PREFIX}{one}"]
