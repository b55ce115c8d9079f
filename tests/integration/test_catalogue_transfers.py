"""Each kind of transfer from its request to its end: rows, claims and events."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from uuid import uuid4

import pytest
from sqlalchemy.orm import Session

from datamanager.domain.fields import SIZE_MAX
from datamanager.domain.states import TRANSITIONS, ObjectStatus, Phase, TransferStatus, Verified
from datamanager.errors import (
    InternalError,
    InvalidRequest,
    NoSpace,
    ObjectDeleted,
    PathReplaced,
    SourceNotRemoved,
    TaskNotFound,
)
from models import submission
from models.access.visibility import ALL
from models.database import Database
from models.objects.catalogue import Facts
from models.transfers import lookup, outcomes, queue
from models.transfers.items import known_note
from models.transfers.queue import TransferLease
from tests.support.bookkeeping import (
    MACHINES,
    SHA256,
    begin,
    claims,
    get_object,
    get_transfer,
    messages,
    order,
    register,
    snapshot,
    submit,
    take,
    told,
)

pytestmark = pytest.mark.dialect

PROVED = Facts(7, SHA256, Verified.SHA256)
ENDS: dict[str, Callable[[Session, TransferLease], object]] = {
    "copy": lambda session, hold: outcomes.complete_copy(session, hold, PROVED),
    "delete": lambda session, hold: outcomes.complete_delete(session, hold),
    "getexternal": lambda session, hold: outcomes.complete_getexternal(session, hold, PROVED, ""),
    "move": lambda session, hold: outcomes.commit_move(session, hold, PROVED),
}


def test_a_request_is_one_row_its_claims_and_its_messages(database: Database) -> None:
    source = register(database, "in/a.nc", group="fire", size=5)
    transfer = submit(database, order("copy", source, "out/b.nc"))
    row = get_transfer(database, transfer)
    assert (row.kind, row.object_id, row.status, row.phase) == ("copy", source, "QUEUED", "queued")
    assert (row.source_machine, row.source_place) == ("alpha", "in/a.nc")
    assert (row.destination_machine, row.destination_place) == ("beta", "out/b.nc")
    assert (row.group, row.bytes_done, row.bytes_total) == ("fire", 0, 5)
    assert (row.attempts, row.epoch, row.owner, row.ended, row.faults, row.notes) == (0, 0, None, None, [], {})
    assert row.created.tzinfo is not None
    assert lookup.request_of(row) == order("copy", source, "out/b.nc").fields
    assert claims(database) == {
        ("place", "alpha:in/a.nc", source, None),
        ("read", None, source, transfer),
        ("place", "beta:out/b.nc", None, transfer),
    }
    assert told(database, transfer) == ["dm.requests", "dm.transfer.queued"]
    request, queued = messages(database, transfer)
    assert (request.exchange, queued.exchange) == ("", "dm.events")
    assert request.body["data"] == {"transfer": str(transfer)}
    assert queued.body["sequence"] == "0000000001"
    assert queued.body["type"] == "dm.transfer.queued"


def test_copy(database: Database) -> None:
    source = register(database, "in/a.nc", group="fire", originator="model", description="d", metadata={"k": [1]})
    transfer = submit(database, order("copy", source, "/data/beta/out//b.nc"))
    hold = begin(database, transfer)
    with database.write() as session:
        new = outcomes.complete_copy(session, hold, PROVED)
    copy, row = get_object(database, new), get_transfer(database, transfer)
    assert (copy.machine, copy.path, copy.filename, copy.place) == ("beta", "/data/beta/out/", "b.nc", "out/b.nc")
    assert (copy.group, copy.originator, copy.description, copy.meta) == ("fire", "model", "d", {"k": [1]})
    assert (copy.size, copy.checksum, copy.verified, copy.status) == (7, SHA256, "sha256", "ACTIVE")
    assert (copy.derived_from, new) == (source, row.result_object_id)
    assert (row.status, row.phase, row.result, row.bytes_done, row.bytes_total) == ("COMPLETE", "done", str(new), 7, 7)
    assert (row.owner, row.lease_until, row.error_code) == (None, None, None)
    assert row.ended is not None
    assert claims(database) == {("place", "alpha:in/a.nc", source, None), ("place", "beta:out/b.nc", new, None)}
    assert told(database, new) == ["dm.object.copied"]
    assert told(database, transfer)[2:] == ["dm.transfer.running", "dm.transfer.complete"]
    assert [message.body.get("sequence") for message in messages(database, transfer)] == [
        None,
        "0000000001",
        "0000000002",
        "0000000003",
    ]


def test_getexternal(database: Database) -> None:
    transfer = submit(database, order("getexternal", dest="out/b.nc", group="fire", metadata={"k": 1}))
    assert claims(database) == {("place", "beta:out/b.nc", None, transfer)}
    hold = begin(database, transfer)
    with database.write() as session:
        new = outcomes.complete_getexternal(session, hold, PROVED, "https://example.org/x")
    obj, row = get_object(database, new), get_transfer(database, transfer)
    assert (obj.machine, obj.path, obj.filename, obj.group, obj.meta) == ("beta", "out", "b.nc", "fire", {"k": 1})
    assert (obj.originator, obj.derived_from) == ("https://example.org/x", None)
    assert (row.status, row.result, row.object_id) == ("COMPLETE", str(new), None)
    assert claims(database) == {("place", "beta:out/b.nc", new, None)}
    assert told(database, new) == ["dm.object.registered"]


def test_move_holds_both_places_until_its_source_is_removed(database: Database) -> None:
    moved = register(database, "in/a.nc")
    before = get_object(database, moved)
    transfer = submit(database, order("move", moved, "out/b.nc"))
    hold = begin(database, transfer)
    with database.write() as session:
        outcomes.commit_move(session, hold, PROVED)
    obj, row = get_object(database, moved), get_transfer(database, transfer)
    assert (obj.machine, obj.path, obj.filename, obj.place) == ("beta", "out", "b.nc", "out/b.nc")
    assert (obj.size, obj.checksum, obj.date_registered) == (7, SHA256, before.date_registered)
    assert obj.date_modified > before.date_modified
    assert (row.status, row.phase) == ("RUNNING", "cleanup")
    assert row.notes == {"committed": True, **known_note(before.size, before.checksum)}
    meanwhile = {
        ("place", "alpha:in/a.nc", None, transfer),
        ("place", "beta:out/b.nc", moved, None),
        ("write", None, moved, transfer),
    }
    assert claims(database) == meanwhile
    with database.write() as session:
        outcomes.commit_move(session, hold, PROVED)  # a repeated attempt finds it done
        queue.note(session, hold, phase="commit", bytes_done=7)  # was read before, and comes late
    assert get_transfer(database, transfer).phase == "cleanup"
    with database.write() as session:
        queue.note(session, hold, phase="cleanup")
    assert claims(database) == meanwhile
    with database.write() as session:
        outcomes.finish_move(session, hold)
    row = get_transfer(database, transfer)
    assert (row.status, row.result) == ("COMPLETE", "Move successful")
    assert claims(database) == {("place", "beta:out/b.nc", moved, None)}
    assert told(database, moved) == ["dm.object.registered", "dm.object.moved"]
    register(database, "in/a.nc")


def test_move_whose_source_stays_ends_in_error_at_the_new_place(database: Database) -> None:
    moved = register(database, "a")
    transfer = submit(database, order("move", moved, "b"))
    hold = begin(database, transfer)
    with database.write() as session:
        outcomes.commit_move(session, hold, PROVED)
    with database.write() as session:
        outcomes.fail(session, hold, SourceNotRemoved("alpha:a is still there, beta:b holds the object"))
    row = get_transfer(database, transfer)
    assert (row.status, row.error_code) == ("ERROR", "source_not_removed")
    assert get_object(database, moved).machine == "beta"
    assert claims(database) == {("place", "beta:b", moved, None)}


def test_a_rename_keeps_what_was_proved(database: Database) -> None:
    moved = register(database, "a")
    hold = begin(database, submit(database, order("move", moved, "b")))
    with database.write() as session:
        outcomes.commit_move(session, hold, PROVED)
        outcomes.finish_move(session, hold)
    hold = begin(database, submit(database, order("move", moved, "c")))
    with database.write() as session:
        outcomes.commit_move(session, hold, Facts(7))
    assert (get_object(database, moved).checksum, get_object(database, moved).verified) == (SHA256, "sha256")


def test_delete_and_a_second_one(database: Database) -> None:
    gone = register(database, "in/a.nc")
    transfer = submit(database, order("delete", gone))
    hold = begin(database, transfer)
    with database.write() as session:
        assert outcomes.complete_delete(session, hold) == "alpha:in/a.nc deleted"
    assert get_object(database, gone).status == ObjectStatus.DELETED
    assert get_transfer(database, transfer).result == "alpha:in/a.nc deleted"
    assert claims(database) == set()
    assert told(database, gone) == ["dm.object.registered", "dm.object.deleted"]
    with pytest.raises(ObjectDeleted):
        submit(database, order("delete", gone))
    assert get_object(database, gone).status == ObjectStatus.DELETED


def test_error(database: Database) -> None:
    source = register(database, "a")
    transfer = submit(database, order("copy", source, "b"))
    hold = begin(database, transfer)
    with database.write() as session:
        outcomes.fail(session, hold, NoSpace("no space on beta"))
    row = get_transfer(database, transfer)
    assert (row.status, row.phase, row.error_code, row.result) == ("ERROR", "done", "no_space", "no space on beta")
    assert [(fault["code"], fault["attempt"]) for fault in row.faults] == [("no_space", 1)]
    assert told(database, transfer)[-1] == "dm.transfer.error"
    assert get_object(database, source).status == ObjectStatus.ACTIVE


def test_a_replaced_path_is_a_security_event_of_each_attempt(database: Database) -> None:
    transfer = submit(database, order("copy", register(database, "a"), "b"))
    hold = begin(database, transfer)
    with database.write() as session:
        queue.add_fault(session, hold, "connection_lost", "cut")
        outcomes.fail(session, hold, PathReplaced("'/data/beta/run' leads to '/etc' now"))
    assert told(database, transfer)[-2:] == ["dm.security.path_replaced", "dm.transfer.error"]
    data = messages(database, transfer)[-2].body["data"]
    assert data == {
        "transfer": str(transfer),
        "kind": "copy",
        "item": None,
        "detail": "'/data/beta/run' leads to '/etc' now",
    }


def test_an_error_text_of_a_strange_machine_can_be_stored(database: Database) -> None:
    transfer = submit(database, order("getexternal", dest="a"))
    hold = begin(database, transfer)
    with database.write() as session:
        queue.add_fault(session, hold, "remote_error", "x\0y\udcff" + "z" * 9000)
        outcomes.fail(session, hold, NoSpace("NUL \0, half a pair \ud800"))
    row = get_transfer(database, transfer)
    assert row.error_detail == row.result == "NUL \\x00, half a pair \\ud800"
    assert row.faults[0]["detail"].startswith("x\\x00y\\udcffz")
    assert len(row.faults[0]["detail"]) == queue.DETAIL_MAX


def test_faults_and_notes_are_kept_and_bounded(database: Database) -> None:
    hold = begin(database, submit(database, order("getexternal", dest="a")))
    for number in range(queue.FAULTS_KEPT + 5):
        with database.write() as session:
            queue.add_fault(session, hold, "connection_lost", str(number))
            queue.remember(session, hold, **{f"note{number % 3}": number})
    row = get_transfer(database, hold.transfer)
    assert [fault["detail"] for fault in row.faults] == [str(n) for n in range(5, queue.FAULTS_KEPT + 5)]
    assert row.notes == {"note0": 54, "note1": 52, "note2": 53}


def test_progress(database: Database) -> None:
    hold = begin(database, submit(database, order("getexternal", dest="a")))
    with database.write() as session:
        queue.note(session, hold, phase=Phase.TRANSFER, bytes_done=SIZE_MAX, bytes_total=SIZE_MAX)
    row = get_transfer(database, hold.transfer)
    assert (row.phase, row.bytes_done, row.bytes_total) == ("transfer", SIZE_MAX, SIZE_MAX)
    for column in ("status", "ended", "owner", "epoch", "sequence", "id"):
        with pytest.raises(InternalError), database.write() as session:
            queue.note(session, hold, **{column: None})


def test_sizes_to_the_end_of_64_bits(database: Database) -> None:
    big = register(database, "a", size=SIZE_MAX)
    hold = begin(database, submit(database, order("copy", big, "b")))
    with database.write() as session:
        new = outcomes.complete_copy(session, hold, Facts(SIZE_MAX))
    assert get_object(database, big).size == get_object(database, new).size == SIZE_MAX == 2**63 - 1


def test_back_to_the_queue_and_again(database: Database) -> None:
    transfer = submit(database, order("getexternal", dest="a"))
    hold = begin(database, transfer)
    with database.write() as session:
        queue.requeue(session, hold)
    row = get_transfer(database, transfer)
    assert (row.status, row.phase, row.owner, row.lease_until, row.attempts) == ("QUEUED", "queued", None, None, 1)
    started, again = row.started, begin(database, transfer)
    assert again.epoch == 2
    with database.write() as session:
        queue.requeue(session, again, spent=False, after=timedelta(hours=1))
    row = get_transfer(database, transfer)
    assert (row.attempts, row.started) == (1, started)
    assert take(database, transfer) == []  # not before its time
    assert told(database, transfer).count("dm.transfer.running") == 2


def test_the_oldest_goes_first(database: Database) -> None:
    wanted = [submit(database, order("getexternal", dest=f"in/{i}")) for i in range(5)]
    assert [hold.transfer for hold in take(database, limit=3)] == wanted[:3]
    assert [hold.transfer for hold in take(database, limit=9)] == wanted[3:]


def test_only_allowed_changes_of_status(database: Database) -> None:
    assert {status for status, after in TRANSITIONS.items() if not after} == {s for s in TransferStatus if s.ended}
    source = register(database, "a")
    for kind in ("copy", "delete", "getexternal", "move"):
        transfer = submit(database, order(kind, source, f"b-{kind}"))
        (hold,) = take(database, transfer)
        before = snapshot(database)
        with pytest.raises(InternalError), database.write() as session:
            ENDS[kind](session, hold)  # taken, but never begun
        assert snapshot(database) == before
        with database.write() as session:
            outcomes.fail(session, hold, NoSpace("full"))  # QUEUED → ERROR is allowed
        assert get_transfer(database, transfer).status == "ERROR"


def test_a_move_is_not_finished_before_it_is_committed(database: Database) -> None:
    moved = register(database, "a")
    hold = begin(database, submit(database, order("move", moved, "b")))
    with pytest.raises(InternalError), database.write() as session:
        outcomes.finish_move(session, hold)
    assert get_transfer(database, hold.transfer).status == "RUNNING"


@pytest.mark.parametrize("kind", ["copy", "move", "getexternal", "delete"])
def test_a_transfer_ends_only_as_what_it_is(database: Database, kind: str) -> None:
    hold = begin(database, submit(database, order(kind, register(database, "a"), "b")))
    if kind != "copy" and kind != "move":  # a move is a copy request too
        with pytest.raises(InternalError), database.write() as session:
            outcomes.complete_copy(session, hold, PROVED)
    if kind != "move":
        with pytest.raises(InternalError), database.write() as session:
            outcomes.commit_move(session, hold, PROVED)
    if kind != "getexternal":
        with pytest.raises(InternalError), database.write() as session:
            outcomes.complete_getexternal(session, hold, PROVED, "")


def test_a_run_finds_its_transfer(database: Database) -> None:
    run = uuid4()
    wanted = order("getexternal", dest="a")
    with database.write() as session:
        made = submission.submit(
            session, MACHINES, submission.SealedRequest(wanted.kind, wanted.fields, flow_run_id=run, grant=None)
        ).id
    with database.read() as session:
        found = lookup.by_flow_run(session, [run]).get(run)
        assert found is not None
        assert found.id == made
        assert lookup.by_flow_run(session, [uuid4()]) == {}
        assert lookup.ended_among(session, [made, uuid4()]) == []
        with pytest.raises(TaskNotFound):
            lookup.get_transfer(session, uuid4(), ALL)


def test_an_object_is_needed(database: Database) -> None:
    for kind in ("copy", "move", "delete"):
        with pytest.raises(InvalidRequest):
            submit(database, order(kind, None, "b"))
