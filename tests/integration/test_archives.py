"""Archives in the catalogue: who may have what, when an object is ARCHIVED, and when a bundle may go."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import pytest

from datamanager.domain.archive_requests import (
    ActivateManyRequest,
    ActivateRequest,
    ArchiveManyRequest,
    ArchiveRequest,
)
from datamanager.domain.bundle_model import Pack, VerifyLevel
from datamanager.domain.requests import validated
from datamanager.domain.states import BundleStatus, ObjectStatus, TransferKind, Verified
from datamanager.errors import (
    ChecksumMismatch,
    DestinationExists,
    InternalError,
    InvalidRequest,
    LeaseLost,
    NoSpace,
    ObjectActive,
    ObjectArchived,
    ObjectBusy,
    ObjectDeleted,
    ObjectNotFound,
    ObjectUnknown,
    SourceNotRemoved,
    UnknownMachine,
)
from datamanager.machines import ArchiveRules, Machines, parse_machines
from models import submission
from models.archive import bundles
from models.archive import items as archive_items
from models.batches import results as batch_results
from models.database import Database
from models.objects.catalogue import Facts
from models.submission import SealedRequest
from models.tables import Bundle as BundleRow
from models.tables import DataObject, TransferItem
from models.transfers import outcomes, queue
from models.transfers.items import select_items
from models.transfers.queue import TransferLease
from tests.support.archiving import SHA, manifest
from tests.support.bookkeeping import (
    begin,
    claims,
    get_object,
    get_transfer,
    order,
    place,
    register,
    snapshot,
    take,
    told,
)
from tests.support.bookkeeping import submit as submit_plain

pytestmark = pytest.mark.dialect

MACHINES: Machines = parse_machines(
    """
    [machines.alpha]
    transport = "local"
    base_dir = "/data/alpha"
    [machines.beta]
    transport = "sftp"
    host = "beta.example"
    base_dir = "/data/beta"
    [machines.tape]
    transport = "local"
    base_dir = "/tape"
    archive = true
    """,
    "machines.toml",
)


def archive(*objects: UUID, **fields: Any) -> SealedRequest:
    """Return the order to archive one object, or several."""
    if len(objects) == 1:
        return SealedRequest(TransferKind.ARCHIVE, validated(fields, ArchiveRequest), objects[0], grant=None)
    return SealedRequest(
        TransferKind.ARCHIVE_MANY, validated({"items": [*objects], **fields}, ArchiveManyRequest), grant=None
    )


def activate(*objects: UUID | dict[str, Any], **fields: Any) -> SealedRequest:
    """Return the order to bring one object back, or several."""
    if len(objects) == 1 and isinstance(objects[0], UUID):
        return SealedRequest(TransferKind.ACTIVATE, validated(fields, ActivateRequest), objects[0], grant=None)
    return SealedRequest(
        TransferKind.ACTIVATE_MANY, validated({"items": [*objects], **fields}, ActivateManyRequest), grant=None
    )


def submit(database: Database, wanted: SealedRequest, machines: Machines = MACHINES) -> UUID:
    with database.write() as session:
        return submission.submit(session, machines, wanted).id


def do(database: Database, act: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with database.write() as session:
        return act(session, *args, **kwargs)


def items_of(database: Database, transfer: UUID) -> list[TransferItem]:
    with database.read() as session:
        return select_items(session, transfer, limit=100)


def ends(database: Database, transfer: UUID) -> list[str]:
    return [(item.error_code or item.status) + "*" * item.skipped for item in items_of(database, transfer)]


def bundle_row(database: Database, bundle: UUID) -> BundleRow:
    with database.read() as session:
        return session.get_one(BundleRow, bundle)


def begun(database: Database, hold: TransferLease, *numbers: int) -> BundleRow:
    args = numbers or (0,), MACHINES["tape"], Pack.TAR, VerifyLevel.CHECKSUMS
    row: BundleRow = do(database, archive_items.begin_bundle, hold, *args)
    return row


def archived(database: Database, *objects: UUID, keep: bool = False) -> BundleRow:
    """Archive objects in one bundle, as the flow does."""
    transfer = submit(database, archive(*objects, keep_source=keep))
    hold = begin(database, transfer)
    bundle = begun(database, hold, *range(len(objects)))
    do(database, bundles.record_intent, hold, bundle.id, {"size": 1})
    do(database, archive_items.commit_archive, hold, manifest(database, bundle, *objects), keep_source=keep)
    if not keep:
        do(database, batch_results.end_committed, hold, range(len(objects)))
    assert isinstance(do(database, archive_items.finish, hold), str)
    return bundle_row(database, bundle.id)


def recalled(database: Database, wanted: SealedRequest, size: int = 7) -> UUID:
    transfer = submit(database, wanted)
    hold = begin(database, transfer)
    numbers = [item.number for item in items_of(database, transfer) if item.status == "QUEUED"]
    facts = Facts(size, f"sha256:{SHA}", Verified.SHA256)
    do(database, archive_items.commit_recalls, hold, [(number, facts) for number in numbers])
    assert isinstance(do(database, archive_items.finish, hold), str)
    return transfer


# --- accepting --------------------------------------------------------------------------------------------------------


def test_archiving_takes_the_object_alone_and_keeps_its_place_until_the_end(database: Database) -> None:
    uuid = register(database, "in/a", group="fire")
    transfer = submit(database, archive(uuid))
    row = get_transfer(database, transfer)
    assert (row.kind, row.source_machine, row.destination_machine, row.object_id) == ("archive", "alpha", "tape", uuid)
    assert (row.source_place, row.destination_place, row.group, row.bytes_total) == ("in/a", None, "fire", 5)
    assert ends(database, transfer) == ["QUEUED"]
    assert claims(database) == {("place", "alpha:in/a", uuid, None), ("write", None, uuid, transfer)}
    for rival in (order("copy", uuid, "x"), order("move", uuid, "x"), order("delete", uuid), archive(uuid)):
        with pytest.raises(ObjectBusy):
            submit(database, rival)


def test_a_kept_source_is_only_read(database: Database) -> None:
    uuid = register(database, "in/a")
    submit(database, order("copy", uuid, "x"))
    transfer = submit(database, archive(uuid, keep_source=True))
    assert ("read", None, uuid, transfer) in claims(database)
    with pytest.raises(ObjectBusy):
        submit(database, archive(uuid))


def test_what_cannot_be_archived_or_activated_is_refused_as_a_whole(database: Database) -> None:
    active, deleted, unknown, there, stray = (register(database, name) for name in "abcde")
    archived(database, there)
    register(database, "taken")
    with database.write() as session:
        session.get_one(DataObject, deleted).status = ObjectStatus.DELETED.value
        session.get_one(DataObject, unknown).status = ObjectStatus.UNKNOWN.value
        session.get_one(DataObject, stray).machine = "gone"
    before = snapshot(database)
    for wanted, error in (
        (archive(uuid4()), ObjectNotFound),
        (archive(deleted), ObjectDeleted),
        (archive(unknown), ObjectUnknown),
        (archive(there), ObjectArchived),
        (archive(stray), UnknownMachine),
        (archive(active, archive_to="nowhere"), UnknownMachine),
        (archive(active, archive_to="beta"), InvalidRequest),
        (activate(uuid4()), ObjectNotFound),
        (activate(deleted), ObjectDeleted),
        (activate(unknown), ObjectUnknown),
        (activate(active, machine="beta"), ObjectActive),
        (activate(there, dest="taken"), DestinationExists),
        (activate(there, machine="nowhere"), UnknownMachine),
    ):
        with pytest.raises(error):
            submit(database, wanted)
    assert snapshot(database) == before


def test_which_archive_is_meant(database: Database) -> None:
    fire, rain = register(database, "a", group="fire"), register(database, "b", group="rain")
    text = '[machines.{}]\ntransport = "local"\nbase_dir = "/x"\narchive = {}\n'
    several = parse_machines(
        text.format("alpha", "false") + text.format("one", "true") + text.format("two", "true"), "machines.toml"
    )
    with pytest.raises(InvalidRequest) as undecided:
        submit(database, archive(fire), several)
    assert undecided.value.fields == {"archive_to": "must be one of one, two"}
    with pytest.raises(InvalidRequest) as none:
        submit(database, archive(fire), parse_machines(text.format("alpha", "false"), "machines.toml"))
    assert set(none.value.fields) == {"archive_to"}
    ruled = several.with_archives(ArchiveRules("one", {"fire": "two"}))
    chosen = [item.destination_machine for item in items_of(database, submit(database, archive(fire, rain), ruled))]
    assert chosen == ["two", "one"]
    others = [register(database, name, group="fire") for name in "cd"]
    asked = items_of(database, submit(database, archive(*others, archive_to="one"), ruled))
    assert {item.destination_machine for item in asked} == {"one"}


def test_items_of_a_batch_are_judged_alone(database: Database) -> None:
    good, busy, there = (register(database, name) for name in "abc")
    archived(database, there)
    submit(database, order("copy", busy, "x"))
    transfer = submit(database, archive(good, uuid4(), busy, there, good))
    assert ends(database, transfer) == ["QUEUED", "object_not_found", "object_busy", "COMPLETE*", "object_busy"]
    other = register(database, "e")
    archived(database, other)
    back = submit(database, activate(there, {"uuid": str(other), "dest": "c"}, good, {"uuid": busy, "machine": "beta"}))
    assert ends(database, back) == ["QUEUED", "destination_exists", "COMPLETE*", "object_active"]
    assert ("write", None, there, back) in claims(database)
    assert not [claim for claim in claims(database) if claim[2] == other]


# --- the order of safety ----------------------------------------------------------------------------------------------


def test_one_transaction_archives_and_the_place_is_free_when_the_source_is_gone(database: Database) -> None:
    first, second = register(database, "in/a"), register(database, "in/b")
    transfer = submit(database, archive(first, second))
    hold = begin(database, transfer)
    bundle = begun(database, hold, 0, 1)
    assert bundle.place.startswith("bundles/")
    with pytest.raises(DestinationExists):  # nobody may put a file there, or register one and delete it
        submit(database, order("getexternal", dest=bundle.place, machine="tape"))
    do(database, bundles.record_intent, hold, bundle.id, {"size": 1})
    assert get_transfer(database, transfer).past_commit_point
    assert get_object(database, first).status == "ACTIVE"
    do(database, archive_items.commit_archive, hold, manifest(database, bundle, first, second), keep_source=False)
    do(database, archive_items.commit_archive, hold, manifest(database, bundle, first, second), keep_source=False)
    row = get_object(database, first)
    assert (row.status, row.machine, row.place, row.archived_in) == (
        *("ARCHIVED", "alpha", "in/a"),
        f"tape:{bundle.place}",
    )
    assert (row.size, row.checksum, row.verified) == (7, f"sha256:{SHA}", "sha256")
    assert told(database, first)[-1] == "dm.object.archived"
    assert ("place", "alpha:in/a", first, transfer) in claims(database)  # its file is still there
    do(database, batch_results.end_committed, hold, [0])
    assert not [claim for claim in claims(database) if claim[2] == first]
    do(database, batch_results.fail_items, hold, [(1, SourceNotRemoved("it changed"))])
    error = do(database, archive_items.finish, hold)
    assert (error.code, ends(database, transfer)) == ("items_failed", ["COMPLETE", "source_not_removed"])
    assert get_object(database, second).status == "ARCHIVED"
    with database.read() as session:
        assert set(bundles.members_of(session, [first, second])) == {first, second}


def test_a_single_object_ends_with_the_error_of_its_own(database: Database) -> None:
    transfer = submit(database, archive(register(database, "in/a")))
    hold = begin(database, transfer)
    do(database, batch_results.fail_items, hold, [(0, NoSpace("the tape is full"))])
    assert do(database, archive_items.finish, hold).code == "no_space"
    row = get_transfer(database, transfer)
    assert (row.status, row.error_code, row.error_detail, row.leaves_partial) == (
        *("ERROR", "no_space", "the tape is full"),
        True,  # its source may lie aside
    )


def test_a_transfer_that_ends_before_the_commit_leaves_its_objects_as_they_were(database: Database) -> None:
    uuid = register(database, "in/a")
    transfer = submit(database, archive(uuid))
    hold = begin(database, transfer)
    bundle = begun(database, hold)
    do(database, bundles.record_intent, hold, bundle.id, {"size": 1})
    do(database, outcomes.fail, hold, ChecksumMismatch("no"))
    assert (get_object(database, uuid).status, bundle_row(database, bundle.id).status) == ("ACTIVE", "ABANDONED")
    assert {claim[:3] for claim in claims(database) if claim[2] == uuid} == {("place", "alpha:in/a", uuid)}
    for act, args in (
        (bundles.record_intent, (bundle.id, {})),
        (archive_items.commit_archive, (manifest(database, bundle, uuid),)),
    ):
        with pytest.raises(LeaseLost):
            do(database, act, hold, *args, **({"keep_source": False} if act is archive_items.commit_archive else {}))
    with database.read() as session:
        assert [row.id for row in bundles.to_remove(session, 5, ["tape"], unneeded=False)] == [bundle.id]
        assert bundles.to_remove(session, 5, ["elsewhere"], unneeded=False) == []
    do(database, bundles.note_removed, bundle.id)
    assert not [claim for claim in claims(database) if claim[2] == bundle.id]


def test_who_lost_the_lease_commits_nothing(database: Database) -> None:
    uuid = register(database, "in/a")
    transfer = submit(database, archive(uuid))
    old = begin(database, transfer)
    bundle = begun(database, old)
    do(database, bundles.record_intent, old, bundle.id, {"size": 1})
    do(database, queue.requeue, old)
    (new,) = take(database, transfer, owner="mover-2")
    with pytest.raises(LeaseLost):
        do(database, archive_items.commit_archive, old, manifest(database, bundle, uuid), keep_source=False)
    assert get_object(database, uuid).status == "ACTIVE"
    do(database, archive_items.commit_archive, new, manifest(database, bundle, uuid), keep_source=False)
    assert get_object(database, uuid).status == "ARCHIVED"


def test_an_object_whose_item_has_ended_is_not_archived_by_a_late_bundle(database: Database) -> None:
    first, second = register(database, "in/a"), register(database, "in/b")
    hold = begin(database, submit(database, archive(first, second)))
    bundle = begun(database, hold, 0, 1)
    do(database, batch_results.fail_items, hold, [(0, NoSpace("given up"))])
    submit_plain(database, order("move", first, "elsewhere"))
    do(database, archive_items.commit_archive, hold, manifest(database, bundle, first, second), keep_source=False)
    assert [get_object(database, uuid).status for uuid in (first, second)] == ["ACTIVE", "ARCHIVED"]
    with database.read() as session:
        assert set(bundles.members_of(session, [first, second])) == {second}


def test_of_two_that_keep_the_source_one_archives(database: Database) -> None:
    uuid = register(database, "in/a")
    holds = [begin(database, submit(database, archive(uuid, keep_source=True))) for _ in range(2)]
    made = [begun(database, hold) for hold in holds]
    for hold, bundle in zip(holds, made, strict=True):
        do(database, archive_items.commit_archive, hold, manifest(database, bundle, uuid), keep_source=True)
    assert do(database, archive_items.finish, holds[0]) == "Archive successful"
    assert do(database, archive_items.finish, holds[1]).code == "object_archived"
    assert [bundle_row(database, bundle.id).status for bundle in made] == ["SEALED", "UNNEEDED"]
    assert get_object(database, uuid).archived_in == f"tape:{made[0].place}"
    assert not [claim for claim in claims(database) if claim[2] == uuid]


# --- coming back, and going for good ----------------------------------------------------------------------------------


def test_an_activated_object_has_its_place_and_frees_its_part(database: Database) -> None:
    first, second = register(database, "in/a"), register(database, "in/b")
    bundle = archived(database, first, second)
    assert [get_object(database, uuid).status for uuid in (first, second)] == ["ARCHIVED"] * 2
    register(database, "in/b")  # the place is free
    transfer = submit(database, activate(first))
    row = get_transfer(database, transfer)
    assert (row.source_machine, row.source_place, row.destination_machine, row.destination_place) == (
        *("tape", bundle.place),
        *("alpha", "in/a"),
    )
    assert {claim for claim in claims(database) if claim[3] == transfer} == {
        ("write", None, first, transfer),
        ("place", "alpha:in/a", first, transfer),
    }
    for rival in (activate(first), order("delete", first)):
        with pytest.raises(ObjectBusy):
            submit(database, rival)
    hold = begin(database, transfer)
    facts = Facts(7, f"sha256:{SHA}", Verified.SHA256)
    do(database, archive_items.commit_recalls, hold, [(0, facts)])
    do(database, archive_items.commit_recalls, hold, [(0, facts)])
    assert do(database, archive_items.finish, hold) == "Activate successful"
    found = get_object(database, first)
    assert (found.status, found.archived_in, found.place) == ("ACTIVE", None, "in/a")
    assert told(database, first)[-1] == "dm.object.activated"
    assert [claim for claim in claims(database) if claim[2] == first] == [("place", "alpha:in/a", first, None)]
    assert bundle_row(database, bundle.id).status == "SEALED"
    with pytest.raises(DestinationExists):
        submit(database, activate(second))
    recalled(database, activate({"uuid": second, "machine": "beta", "dest": "out/c"}, first))
    assert (get_object(database, second).machine, get_object(database, second).place) == ("beta", "out/c")
    assert bundle_row(database, bundle.id).status == "UNNEEDED"


def test_a_bundle_is_unneeded_when_its_last_object_was_deleted(database: Database) -> None:
    first, second = register(database, "in/a"), register(database, "in/b")
    bundle = archived(database, first, second)
    for number, uuid in enumerate((first, second)):
        transfer = submit(database, order("delete", uuid))
        assert get_transfer(database, transfer).source_machine is None  # no machine needs to be there
        hold = begin(database, transfer)
        assert do(database, outcomes.complete_delete, hold) == f"alpha:in/{'ab'[number]} deleted"
        row = get_object(database, uuid)
        assert (row.status, row.archived_in) == ("DELETED", None)
        with pytest.raises(ObjectDeleted):
            submit(database, order("delete", uuid))
        assert bundle_row(database, bundle.id).status == ("UNNEEDED" if number else "SEALED")
    with database.read() as session:
        assert bundles.to_remove(session, 5, ["tape"], unneeded=False) == []
        assert len(bundles.to_remove(session, 5, ["tape"], unneeded=True)) == 1
    do(database, bundles.note_removed, bundle.id)
    assert bundle_row(database, bundle.id).status == BundleStatus.REMOVED
    assert claims(database) == set()


def test_an_object_can_be_archived_again(database: Database) -> None:
    uuid = register(database, "in/a")
    first = archived(database, uuid, keep=True)
    recalled(database, activate(uuid))
    second = archived(database, uuid)
    assert [bundle_row(database, row.id).status for row in (first, second)] == ["UNNEEDED", "SEALED"]
    with database.read() as session:
        (found, member) = bundles.members_of(session, [uuid])[uuid]
    assert (found.uuid, member.source) == (second.id, place("in/a"))


def test_a_directory_is_archived_and_comes_back(database: Database) -> None:
    uuids = [register(database, f"run/{name}") for name in "ab"]
    register(database, "other")
    below = {"directory": {"machine": "alpha", "path": "run"}}
    transfer = submit(
        database, SealedRequest(TransferKind.ARCHIVE_MANY, validated(below, ArchiveManyRequest), grant=None)
    )
    assert [item.object_id for item in items_of(database, transfer)] == uuids
    do(database, outcomes.fail, begin(database, transfer), InternalError("enough"))
    archived(database, *uuids)
    back = submit(
        database, SealedRequest(TransferKind.ACTIVATE_MANY, validated(below, ActivateManyRequest), grant=None)
    )
    assert [(item.object_id, item.destination_place) for item in items_of(database, back)] == [
        (uuids[0], "run/a"),
        (uuids[1], "run/b"),
    ]
