"""Runs of retention over real files, on this host and by SSH: what goes, what stays, and what a crash leaves."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil

import pytest
from sqlalchemy import update

from datamanager.domain.archive_requests import ArchiveRequest
from datamanager.domain.requests import DeleteRequest
from datamanager.domain.states import TransferKind, Verified
from datamanager.errors import (
    InvalidRequest,
    InvalidRules,
    NotMarked,
    ObjectBusy,
    ObjectDeleted,
    ObjectHeld,
)
from flows.retention import run as retention_run
from flows.retention.run import OPEN_AT_ONCE
from models.access.visibility import ALL
from models.database import now
from models.machines import health
from models.retention import holds, survey
from models.submission import SealedRequest, submit
from models.tables import Bundle, BundleMember, Claim, RetentionMark
from tests.support import archiving
from tests.support.access import granted, in_role
from tests.support.bookkeeping import told
from tests.support.retention import (
    ARCHIVE,
    COPIES,
    LAST,
    LONG_AGO,
    MONTH,
    WITH_GRACE,
    Keeper,
    perform_all,
    reasons,
)

# --- what goes, what stays ------------------------------------------------------------------------------------------


@pytest.mark.dialect
def test_of_copies_on_three_places_the_one_that_nobody_wants_gone_stays(ssh_keeper: Keeper) -> None:
    mine = ssh_keeper.object("a.bin", group="scratch")
    distant = ssh_keeper.object("deep/a.bin", machine="far", group="scratch")
    kept = ssh_keeper.object("paper/a.bin", machine="far", group="paper")
    other = ssh_keeper.object("b.bin", b"other bytes", group="scratch")
    expected = reasons(ssh_keeper.plan(COPIES))
    row = ssh_keeper.run(COPIES)
    assert ssh_keeper.status(mine, distant, kept, other) == ["DELETED", "DELETED", "ACTIVE", "ACTIVE"]
    assert [
        ssh_keeper.there("a.bin"),
        ssh_keeper.there("deep/a.bin", "far"),
        ssh_keeper.there("paper/a.bin", "far"),
    ] == [
        False,
        False,
        True,
    ]
    assert reasons(row) == expected == {str(mine): "act", str(distant): "act", str(other): "last_verified_copy"}
    assert (row.bytes_freed, row.pending, row.status) == (20, 0, "COMPLETE")
    assert {one.reason for one in ssh_keeper.transfers()} == {"retention: copies"}
    assert told(ssh_keeper.parts.database, row.id) == ["dm.retention.completed"]
    with ssh_keeper.parts.database.read() as session:
        assert session.query(Claim).filter(Claim.transfer_id.is_not(None)).all() == []


@pytest.mark.dialect
def test_run_of_a_person_acts_on_what_they_may_and_foreign_copies_keep_nothing(keeper: Keeper) -> None:
    oldest, mine = (keeper.object(f"{name}.bin", group="scratch") for name in "ab")
    foreign = [keeper.object(f"{name}.bin", b"theirs", group="paper") for name in "cd"]
    lone = keeper.object("e.bin", b"theirs", group="scratch")
    everywhere = COPIES.replace('group = "scratch"', 'machine = "here"')
    archivist = in_role("archivist", groups=("scratch",))
    wanted = {str(oldest): "last_verified_copy", str(mine): "act", str(lone): "last_verified_copy"}
    assert reasons(keeper.plan(everywhere, archivist)) == wanted
    assert reasons(keeper.run(everywhere, by=granted("retention!group", groups=("scratch",)))) == {
        **wanted,
        str(mine): "refused",  # retention permits no delete by itself
    }
    row = keeper.run(everywhere, by=archivist)
    assert reasons(row) == wanted
    assert keeper.status(oldest, mine, lone, *foreign) == ["ACTIVE", "DELETED", "ACTIVE", "ACTIVE", "ACTIVE"]
    (transfer,) = keeper.transfers()
    assert (row.created_by, transfer.created_by, transfer.grant) == ("jo", "jo", archivist.to_json())


def test_of_copies_that_are_all_to_go_the_oldest_stays(keeper: Keeper) -> None:
    oldest, *others = (keeper.object(f"{name}.bin", group="scratch") for name in "abc")
    keeper.run(COPIES)
    keeper.run(COPIES)
    assert keeper.status(oldest, *others) == ["ACTIVE", "DELETED", "DELETED"]


@pytest.mark.parametrize("machine", ["here", "far"])
@pytest.mark.parametrize("damage", ["missing", "cut short", "one bit", "a directory"])
def test_a_copy_is_spared_when_the_other_one_is_not_what_it_should_be(
    ssh_keeper: Keeper, machine: str, damage: str
) -> None:
    mine = ssh_keeper.object("a.bin", group="scratch")
    ssh_keeper.object("paper.bin", machine=machine)
    file = ssh_keeper.folders[machine] / "paper.bin"
    match damage:
        case "missing":
            file.unlink()
        case "cut short":
            file.write_bytes(b"some")
        case "one bit":
            file.write_bytes(b"some bytet")
        case _:
            file.unlink()
            file.mkdir()
    row = ssh_keeper.run(COPIES)
    assert reasons(row)[str(mine)] == "survivor_not_proved"
    assert row.lines[0]["detail"]
    assert ssh_keeper.there("a.bin")
    assert ssh_keeper.status(mine) == ["ACTIVE"]
    assert ssh_keeper.transfers() == []


def test_a_size_is_enough_where_the_rule_says_so(keeper: Keeper) -> None:
    mine = keeper.object("a.bin", group="scratch")
    keeper.object("paper.bin")
    (keeper.folders["here"] / "paper.bin").write_bytes(b"some bytet")
    keeper.run(COPIES + 'prove = "size"')
    assert keeper.status(mine) == ["DELETED"]


def test_a_machine_that_does_not_answer_proves_nothing(ssh_keeper: Keeper) -> None:
    mine = ssh_keeper.object("a.bin", group="scratch")
    ssh_keeper.object("paper.bin", machine="far")
    (ssh_keeper.folders["far"]).rename(ssh_keeper.folders["far"].with_name("away"))
    row = ssh_keeper.run(COPIES)
    assert reasons(row)[str(mine)] == "survivor_not_proved"
    assert ssh_keeper.there("a.bin")


def test_one_file_under_the_names_of_two_machines_is_not_two_copies(keeper: Keeper) -> None:
    mine = keeper.object("d/a.bin", group="scratch")
    keeper.object("d/a.bin", machine="twin")
    row = keeper.run(COPIES)
    assert reasons(row)[str(mine)] == "survivor_not_proved"
    assert "the same file" in row.lines[0]["detail"]
    assert os.listdir(keeper.folders["here"] / "d") == ["a.bin"]


def test_one_file_is_known_whatever_its_time_is_said_to_be(ssh_keeper: Keeper) -> None:
    mine = ssh_keeper.object("d/a.bin", group="scratch")
    ssh_keeper.object("d/a.bin", machine="near")
    file = ssh_keeper.folders["here"] / "d/a.bin"
    os.utime(file, (-5, -5))  # SFTP has no time before 1970, and says another one
    assert reasons(ssh_keeper.run(COPIES))[str(mine)] == "survivor_not_proved"
    assert file.exists()


@pytest.mark.parametrize("data", [b"some other, longer bytes", b"some bytet"])
@pytest.mark.parametrize("machine", ["here", "far"])
def test_a_file_that_was_written_to_since_is_no_copy_and_stays(ssh_keeper: Keeper, machine: str, data: bytes) -> None:
    mine = ssh_keeper.object("a.bin", machine=machine, group="scratch")
    ssh_keeper.object("paper.bin")
    (ssh_keeper.folders[machine] / "a.bin").write_bytes(data)
    row = ssh_keeper.run(COPIES)
    assert reasons(row) == {str(mine): "changed_meanwhile"}
    assert (ssh_keeper.folders[machine] / "a.bin").read_bytes() == data
    assert ssh_keeper.transfers() == []


def test_a_copy_whose_file_is_gone_already_is_deleted(keeper: Keeper) -> None:
    mine = keeper.object("a.bin", group="scratch")
    keeper.object("paper.bin")
    (keeper.folders["here"] / "a.bin").unlink()
    assert reasons(keeper.run(COPIES)) == {str(mine): "act"}
    assert keeper.status(mine) == ["DELETED"]


def test_a_proof_does_not_outlive_the_file(keeper: Keeper) -> None:
    ones = [keeper.object(f"{name}.bin", group="scratch") for name in "ab"]
    keeper.object("paper.bin")
    _, work = keeper.begin(COPIES)
    first, second = work._survey()
    assert work._delete(first).reason is None
    (keeper.folders["here"] / "paper.bin").unlink()  # hours later, by somebody who does not know the catalogue
    assert work._delete(second).reason == "survivor_not_proved"
    assert [one.object_id for one in keeper.transfers()] == ones[:1]


def test_a_size_that_nobody_knows_proves_nothing(keeper: Keeper) -> None:
    mine, other = keeper.object("a.bin", group="scratch"), keeper.object("paper.bin")
    keeper.change(other, size=None)
    assert reasons(keeper.run(COPIES + 'prove = "size"')) == {str(mine): "survivor_not_proved"}
    assert reasons(keeper.run(COPIES)) == {str(mine): "act"}


def test_two_files_that_look_alike_on_two_machines_are_two(ssh_keeper: Keeper) -> None:
    mine = ssh_keeper.object("d/a.bin", group="scratch")
    ssh_keeper.object("d/a.bin", machine="far")
    shutil.copystat(ssh_keeper.folders["here"] / "d/a.bin", ssh_keeper.folders["far"] / "d/a.bin")
    ssh_keeper.run(COPIES)
    assert ssh_keeper.status(mine) == ["DELETED"]
    assert os.listdir(ssh_keeper.folders["far"] / "d") == ["a.bin"]


@pytest.mark.dialect
def test_objects_are_archived_in_one_bundle(keeper: Keeper) -> None:
    ones = [keeper.object(f"{name}.bin", name.encode(), group="scratch") for name in "abc"]
    row = keeper.run(ARCHIVE)
    assert keeper.status(*ones) == ["ARCHIVED"] * 3
    (transfer,) = keeper.transfers()
    assert (transfer.kind, transfer.reason) == ("archive_many", "retention: to tape")
    assert {line["verdict"] for line in row.lines} == {"act"}
    assert [mark.outcome for mark in keeper.marks()] == ["done"] * 3
    assert row.bytes_freed == 3


@pytest.mark.dialect
def test_a_copy_in_a_bundle_is_proved_by_the_bundle(keeper: Keeper) -> None:
    mine, archived = keeper.object("a.bin", group="scratch"), keeper.object("b.bin", group="paper")
    database = keeper.parts.database
    with database.write() as session:
        submit(
            session, keeper.parts.machines, SealedRequest(TransferKind.ARCHIVE, ArchiveRequest(), archived, grant=None)
        )
    perform_all_archives(keeper)
    with database.write() as session:  # the bookkeeping of this test makes no bundle: here is one
        bundle = session.query(Bundle).one()
        data = b"all of the bundle"
        bundle.size, bundle.sha256 = len(data), "0" * 64
        place = keeper.folders["tape"] / bundle.place
    keeper.change(archived, checksum=keeper.get(mine).checksum)
    with database.write() as session:
        session.execute(update(BundleMember).values(sha256=str(keeper.get(mine).checksum).removeprefix("sha256:")))
    place.parent.mkdir(parents=True)
    place.write_bytes(data)
    assert reasons(keeper.run(COPIES))[str(mine)] == "survivor_not_proved"
    with database.write() as session:
        session.query(Bundle).one().sha256 = hashlib.sha256(data).hexdigest()
    assert reasons(keeper.run(COPIES))[str(mine)] == "act"
    assert keeper.status(mine, archived) == ["DELETED", "ARCHIVED"]


def perform_all_archives(keeper: Keeper) -> None:
    for row in keeper.transfers():
        archiving.perform(keeper.parts.database, row.id, keeper.parts.machines["tape"])


@pytest.mark.dialect
def test_what_has_expired_goes_where_a_rule_says_so(keeper: Keeper) -> None:
    old = keeper.object("a.bin", b"1")
    unlimited, later = keeper.object("b.bin", b"2"), keeper.object("c.bin", b"3", lifetime="30d")
    keeper.change(old, expires_at=LONG_AGO)
    keeper.run(COPIES)
    assert keeper.status(old) == ["ACTIVE"]
    keeper.run(LAST)
    assert keeper.status(old, unlimited, later) == ["DELETED", "ACTIVE", "ACTIVE"]


# --- holds, grace, restore ------------------------------------------------------------------------------------------


@pytest.mark.dialect
def test_a_held_object_stays_whatever_comes(keeper: Keeper) -> None:
    one = keeper.object("a.bin", group="scratch", lifetime="0s")
    database = keeper.parts.database
    with database.write() as session:
        holds.hold(session, one, ALL, "a paper", "maria")
    row = keeper.run(LAST)
    assert reasons(row) == {str(one): "held"}
    with database.write() as session, pytest.raises(ObjectHeld, match="a paper"):
        submit(session, keeper.parts.machines, SealedRequest(TransferKind.DELETE, DeleteRequest(), one, grant=None))
    with database.write() as session:
        holds.release(session, one, ALL)
    keeper.run(LAST)
    assert keeper.status(one) == ["DELETED"]
    assert {"dm.object.held", "dm.object.released"} <= set(told(database, one))
    with database.write() as session, pytest.raises(ObjectDeleted):
        holds.hold(session, one, ALL, "too late", "")


def test_an_object_whose_delete_is_under_way_can_not_be_held(keeper: Keeper) -> None:
    one = keeper.object("a.bin")
    with keeper.parts.database.write() as session:
        submit(session, keeper.parts.machines, SealedRequest(TransferKind.DELETE, DeleteRequest(), one, grant=None))
    with keeper.parts.database.write() as session, pytest.raises(ObjectBusy, match="being deleted"):
        holds.hold(session, one, ALL, "late", "")


def test_a_delete_that_is_under_way_takes_no_new_lifetime(keeper: Keeper) -> None:
    one = keeper.object("a.bin", lifetime="0s")
    with keeper.parts.database.write() as session:
        submit(session, keeper.parts.machines, SealedRequest(TransferKind.DELETE, DeleteRequest(), one, grant=None))
    with keeper.parts.database.write() as session, pytest.raises(ObjectBusy, match="being deleted"):
        holds.set_expiry(session, one, ALL, None)


@pytest.mark.dialect
def test_a_mark_waits_for_its_grace(keeper: Keeper) -> None:
    mine = keeper.object("a.bin", group="scratch")
    keeper.object("paper.bin")
    assert reasons(keeper.run(WITH_GRACE)) == {str(mine): "mark"}
    assert reasons(keeper.run(WITH_GRACE)) == {str(mine): "in_grace"}
    keeper.make_due()
    assert reasons(keeper.plan(WITH_GRACE)) == {str(mine): "act"}
    assert keeper.status(mine) == ["ACTIVE"]
    assert reasons(keeper.run(WITH_GRACE)) == {str(mine): "act"}
    assert keeper.status(mine) == ["DELETED"]


@pytest.mark.parametrize("change", ["used", "held", "rule gone", "other action", "last copy"])
def test_a_mark_that_does_not_hold_any_more_is_void(keeper: Keeper, change: str) -> None:
    text = WITH_GRACE + 'unused_for = "1d"'
    mine, other = keeper.object("a.bin", group="scratch"), keeper.object("paper.bin")
    keeper.run(text)
    keeper.make_due()
    match change:
        case "used":
            with keeper.parts.database.read() as session:
                time = now(session)
            keeper.change(mine, last_used=time)
        case "held":
            with keeper.parts.database.write() as session:
                holds.hold(session, mine, ALL, "why", "")
        case "rule gone":
            text = text.replace('"copies"', '"another"')
        case "other action":
            text = text.replace("delete-copies", "delete")
        case _:
            keeper.change(other, verified=Verified.SIZE.value)
    expected = reasons(keeper.plan(text))
    row = keeper.run(text)
    assert keeper.status(mine) == ["ACTIVE"]
    assert reasons(row) == expected
    assert keeper.marks()[0].outcome == "void"
    assert len([mark for mark in keeper.marks() if mark.closed is None]) == (change in ("rule gone", "other action"))


@pytest.mark.dialect
def test_a_marked_object_is_taken_back_for_a_while(keeper: Keeper) -> None:
    mine = keeper.object("a.bin", group="scratch")
    keeper.object("paper.bin")
    database, machines = keeper.parts.database, keeper.parts.machines
    with database.write() as session, pytest.raises(NotMarked):
        holds.restore(session, machines, mine, ALL, MONTH, None)
    keeper.run(WITH_GRACE)
    with database.write() as session:
        assert holds.restore(session, machines, mine, ALL, MONTH, None)[1] is None
    keeper.make_due()
    assert reasons(keeper.run(WITH_GRACE)) == {str(mine): "restored"}
    with database.write() as session:
        session.execute(update(RetentionMark).values(spared_until=now(session)))
    assert reasons(keeper.run(WITH_GRACE)) == {str(mine): "mark"}


@pytest.mark.dialect
def test_an_archived_object_is_restored_by_activating_it(keeper: Keeper) -> None:
    mine = keeper.object("a.bin", group="scratch")
    keeper.run(ARCHIVE)
    database, machines = keeper.parts.database, keeper.parts.machines
    with database.write() as session:
        _, task = holds.restore(session, machines, mine, ALL, MONTH, None)
    assert task is not None
    perform_all(keeper.parts)
    assert keeper.status(mine) == ["ACTIVE"]
    assert keeper.get(mine).last_used is not None
    assert reasons(keeper.run(ARCHIVE)) == {str(mine): "restored"}


# --- caps, machines, rules ------------------------------------------------------------------------------------------


def test_a_run_does_not_do_more_than_its_caps(keeper: Keeper) -> None:
    ones = [keeper.object(f"{number}.bin", b"x" * number, group="scratch") for number in range(1, 7)]
    text = ARCHIVE + "max_objects = 4\n[limits]\nmax_bytes = 8"
    plan, row = keeper.plan(text, max_objects=3), keeper.run(text, max_objects=3)
    assert reasons(plan) == reasons(row)
    assert keeper.status(*ones) == ["ARCHIVED"] * 3 + ["ACTIVE"] * 3
    assert [reasons(row)[str(one)] for one in ones[3:]] == ["over_cap"] * 3
    keeper.run(text, max_objects=10**6)  # can't lift what the file says
    assert keeper.status(*ones) == ["ARCHIVED"] * 4 + ["ACTIVE"] * 2


def test_a_run_whose_time_is_over_begins_nothing_more(keeper: Keeper) -> None:
    for number in range(OPEN_AT_ONCE + 3):
        keeper.object(f"{number}.bin", group="scratch")
    keeper.object("paper.bin")
    _, work = keeper.begin(COPIES + '[limits]\nwait = "0s"')
    asyncio.run(work.work())  # no mover is there
    assert len(keeper.transfers()) == OPEN_AT_ONCE
    assert list(reasons(work.report).values()) == ["act"] * OPEN_AT_ONCE + ["over_cap"] * 3


@pytest.mark.dialect
def test_marks_of_a_rule_that_went_are_taken_back_page_by_page(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "PAGE", 3)
    monkeypatch.setattr(retention_run, "WRITTEN_AT_ONCE", 2)
    for number in range(8):
        keeper.object(f"{number}.bin", group="scratch")
    keeper.run(ARCHIVE.replace("0s", "7d"))
    assert len(keeper.marks()) == 8
    assert keeper.run("").counts[0]["objects"] == 8
    assert {mark.outcome for mark in keeper.marks()} == {"void"}


def test_a_drained_machine_is_left_alone(keeper: Keeper) -> None:
    mine = keeper.object("a.bin", group="scratch")
    keeper.object("paper.bin", machine="far")
    with keeper.parts.database.write() as session:
        health.drain(session, "here")
    assert reasons(keeper.run(COPIES)) == {str(mine): "machine_drained"}


def test_a_rule_that_can_not_be_carried_out_stops_the_run(keeper: Keeper) -> None:
    keeper.object("a.bin", group="scratch")
    with pytest.raises(InvalidRules, match="archive_to"):
        keeper.plan(ARCHIVE.replace('"tape"', '"here"'))
    with pytest.raises(InvalidRequest, match="no rule 'nothing'"):
        keeper.plan(ARCHIVE, rule="nothing")
