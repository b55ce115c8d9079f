"""Audits on both databases, of a local machine and of one behind a real sshd: what is found, and what follows."""

from __future__ import annotations

import base64
import os
import shutil
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import select, update

from datamanager.domain.audit_rules import AuditTerms
from datamanager.domain.location import Place, temporary_name
from datamanager.domain.states import ObjectStatus
from datamanager.engine.inspection import storage_scan
from datamanager.errors import ConnectionLost, LeaseLost
from datamanager.machines import Machine
from flows.audit import first_pass
from models.access.visibility import ALL
from models.audit import findings
from models.audit import runs as audit_runs
from models.audit.findings import path_of
from models.core.leases import hold_lease
from models.database import Database, now
from models.objects.claims import claim_place, place_key
from models.tables import Claim, DataObject
from tests.support.auditing import Plant
from tests.support.bookkeeping import messages, told
from tests.support.sshd import PrivateSshd


def with_prefixes(plant: Plant, *prefixes: str) -> Plant:
    machine = Machine.model_validate({**plant.machine.model_dump(exclude_none=True), "audit_prefixes": prefixes})
    return Plant(plant.database, machine, plant.folder, plant.services.settings.home)


def test_what_agrees_is_no_finding(plant: Plant) -> None:
    plant.register("a/one")
    plant.register("two")
    audited = plant.audit()
    assert (audited.row.status, audited.found) == ("COMPLETE", set())
    assert audited.row.counts["objects"] == 2
    assert audited.row.counts["directories"] == 2
    assert told(plant.database, audited.row.id) == ["dm.audit.completed"]


@pytest.mark.dialect
def test_lost_changed_dark_and_found(plant: Plant) -> None:
    kept, lost, changed = (plant.register(f"run/{name}") for name in ("kept", "lost", "changed"))
    gone = plant.register("elsewhere/deep/gone")
    (plant.folder / "run/lost").unlink()
    shutil.rmtree(plant.folder / "elsewhere")
    plant.write("run/changed", b"other")
    plant.write("run/dark")
    plant.write("not-registered/too")  # no object lies in that directory
    audited = plant.audit()
    assert audited.row.status == "COMPLETE"
    assert audited.found == {
        ("LOST", "run/lost"),
        ("LOST", "elsewhere/deep/gone"),
        ("CHANGED", "run/changed"),
        ("DARK", "run/dark"),
    }
    counts = audited.row.counts
    assert [counts[kind] for kind in ("objects", "lost", "changed", "dark", "found")] == [4, 2, 1, 1, 0]
    assert counts["became_unknown"] == 2
    assert {plant.get(one).status for one in (lost, gone)} == {"UNKNOWN"}
    assert plant.get(kept).verified == "sha256"
    row = plant.get(changed)
    assert (row.status, row.verified, row.size) == ("ACTIVE", "none", 10)
    assert audited.of("run/changed").found["size"] == 5
    assert told(plant.database, lost)[-1] == "dm.object.lost"
    assert told(plant.database, changed)[-1] == "dm.object.changed"
    with plant.database.read() as session:
        held = set(session.scalars(select(Claim.place).where(Claim.mode == "place")))
    assert held == {"run/kept", "run/changed"}  # the lost ones' places are free
    assert (plant.folder / "run/dark").exists()

    plant.write("run/lost")
    plant.write("elsewhere/deep/gone", b"not the same ones")
    again = plant.audit()
    assert again.found >= {("FOUND", "run/lost"), ("CHANGED", "elsewhere/deep/gone")}
    assert plant.get(lost).status == "ACTIVE"
    assert plant.get(gone).status == "UNKNOWN"
    assert told(plant.database, lost)[-1] == "dm.object.found"
    assert again.row.counts["restored"] == 1


def test_the_event_has_the_counts(local: Plant) -> None:
    local.register("a/lost")
    (local.folder / "a/lost").unlink()
    local.write("b")  # the base directory is not empty
    audited = local.audit()
    data = messages(local.database, audited.row.id)[0].body["data"]
    assert (data["machine"], data["status"], data["counts"]["lost"]) == ("here", "COMPLETE", 1)


def test_a_found_file_whose_place_is_taken_stays_unknown(local: Plant) -> None:
    lost = local.register("a/x")
    (local.folder / "a/x").unlink()
    local.write("b")
    local.audit()
    local.write("a/x")
    other = local.register("a/x", b"some bytes")  # somebody registered it anew
    audited = local.audit()
    assert (local.get(lost).status, local.get(other).status) == ("UNKNOWN", "ACTIVE")
    assert audited.row.counts["restored"] == 0


def test_a_found_file_needs_the_same_bytes(local: Plant) -> None:
    lost = local.register("a/x", b"0123456789")
    (local.folder / "a/x").unlink()
    local.write("b")
    local.audit()
    local.write("a/x", b"9876543210")
    assert ("CHANGED", "a/x") in local.audit().found
    assert local.get(lost).status == "UNKNOWN"


def test_what_changes_between_the_looks_is_no_finding(plant: Plant) -> None:
    back, sized, registered = plant.register("run/back"), plant.register("run/sized"), "run/late"
    plant.register("run/kept")
    (plant.folder / "run/back").unlink()
    plant.write("run/sized", b"part of it")
    plant.write("run/sized", b"part")
    plant.write(registered)
    plant.write("run/removed")

    def between() -> None:
        plant.write("run/back")
        plant.write("run/sized")
        plant.register(registered)
        (plant.folder / "run/removed").unlink()

    audited = plant.audit(between)
    assert (audited.row.status, audited.found) == ("COMPLETE", set())
    assert {plant.get(one).status for one in (back, sized)} == {"ACTIVE"}


def test_a_row_that_changes_between_the_looks_is_left_alone(local: Plant) -> None:
    moved = local.register("a/moved")
    local.register("a/kept")
    (local.folder / "a/moved").unlink()

    def between() -> None:
        with local.database.write() as session:
            session.execute(update(DataObject).where(DataObject.id == moved).values(date_modified=now(session)))

    assert local.audit(between).found == set()
    assert local.get(moved).status == "ACTIVE"


@pytest.mark.dialect
@pytest.mark.parametrize("when", ["before", "between"])
def test_what_a_transfer_has_claimed_is_left_out(local: Plant, when: str) -> None:
    busy, target, reading = local.register("a/busy"), "a/coming", local.register("a/read")
    local.register("a/kept")
    (local.folder / "a/busy").unlink()
    (local.folder / "a/read").unlink()
    local.write(target)
    transfer = uuid4()

    def claim() -> None:
        with local.database.write() as session:
            mine = update(Claim).where(Claim.place_key == place_key(Place("here", "a/busy")))
            session.execute(mine.values(transfer_id=transfer))
            session.add(Claim(mode="read", object_id=reading, transfer_id=transfer))
            claim_place(session, Place("here", target), transfer=transfer)

    if when == "before":
        claim()
        audited = local.audit()
        assert audited.row.counts["left_out"] == 2
    else:
        audited = local.audit(claim)
    assert (audited.row.status, audited.found) == ("COMPLETE", set())
    assert local.get(busy).status == "ACTIVE"


@pytest.mark.parametrize("how", ["claimed", "changed"])
def test_conclude_leaves_an_object_that_changed_after_the_second_look(local: Plant, how: str) -> None:
    lost = local.register("a/lost")
    local.register("a/kept")
    (local.folder / "a/lost").unlink()

    def change() -> None:
        with local.database.write() as session:
            if how == "claimed":
                session.add(Claim(mode="read", object_id=lost, transfer_id=uuid4()))
            else:
                session.execute(update(DataObject).where(DataObject.id == lost).values(date_modified=now(session)))

    assert local.audit(after=change).found == {("LOST", "a/lost")}
    assert local.get(lost).status == "ACTIVE"


@pytest.mark.parametrize("how", ["missing", "empty", "a file"])
def test_a_base_directory_that_is_not_mounted_is_no_loss(plant: Plant, how: str) -> None:
    one = plant.register("a/one")
    shutil.rmtree(plant.folder)
    if how == "empty":
        plant.folder.mkdir()
    elif how == "a file":
        plant.folder.write_text("")
    audited = plant.audit()
    assert (audited.row.status, audited.row.error_code) == ("ERROR", "remote_error")
    assert audited.rows == []
    assert plant.get(one).status == "ACTIVE"


def test_one_that_goes_away_between_the_looks_is_no_loss(local: Plant) -> None:
    one, two = local.register("a/one"), local.register("a/two")
    (local.folder / "a/one").unlink()
    audited = local.audit(lambda: shutil.rmtree(local.folder))
    assert (audited.row.status, audited.rows) == ("ERROR", [])
    assert {local.get(two).status, local.get(one).status} == {"ACTIVE"}


def test_a_machine_that_is_away_ends_the_audit(
    tmp_path: Path, database: Database, sshd_pair: tuple[PrivateSshd, PrivateSshd]
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    machine = sshd_pair[0].machine("here", folder, port=1, connect_timeout=1)
    plant = Plant(database, machine, folder, tmp_path / "home")
    one = plant.register("a/one")
    (plant.folder / "a/one").unlink()
    audited = plant.audit()
    assert (audited.row.status, audited.row.error_code) == ("ERROR", "machine_unavailable")
    assert (audited.rows, plant.get(one).status) == ([], "ACTIVE")


def test_what_cannot_be_seen_is_not_lost(plant: Plant, tmp_path: Path) -> None:
    """As root no permission is missing: links that lead out, or in a circle, are as unseen as a closed directory."""
    out, circle = plant.register("out/x"), plant.register("circle/x")
    for name in ("out", "circle"):
        shutil.rmtree(plant.folder / name)
    (plant.folder / "out").symlink_to(tmp_path)
    (plant.folder / "circle").symlink_to("circle")
    (tmp_path / "stranger").write_text("not ours to report")
    closed = plant.register("closed/x")
    if os.geteuid() != 0:
        (plant.folder / "closed").chmod(0)
    audited = plant.audit()
    if os.geteuid() != 0:
        (plant.folder / "closed").chmod(0o700)
    assert (audited.row.status, audited.found) == ("COMPLETE", set())
    assert audited.row.counts["unseen"] >= 2
    assert audited.row.counts["unlisted"] >= 1
    assert {plant.get(one).status for one in (out, circle, closed)} == {"ACTIVE"}


@pytest.mark.dialect
def test_hostile_names(plant: Plant) -> None:
    names = ["-dash", "quo'te\"", "$(id)", "new\nline", " blank ", "x" * 255, "ümlaut", "back\\slash"]
    lost = [plant.register(f"odd dir/{name}") for name in names]
    plant.register("odd dir/kept")
    for name in names:
        (plant.folder / "odd dir" / name).unlink()
    dark = [f"dark {name}"[:255] for name in names]
    for name in dark:
        plant.write(f"odd dir/{name}")
    raw = os.fsencode(plant.folder / "odd dir") + b"/not \xff utf-8"
    with open(raw, "wb") as file:
        file.write(b"x")
    os.utime(raw, (1, 1))
    audited = plant.audit()
    assert audited.found == {
        *(("LOST", f"odd dir/{name}") for name in names),
        *(("DARK", f"odd dir/{name}") for name in dark),
        ("DARK", "odd dir/not \\udcff utf-8"),
    }
    odd = audited.of("odd dir/not \\udcff utf-8")
    assert base64.b64decode(odd.found["bytes"]) == b"odd dir/not \xff utf-8"
    assert os.fsencode(path_of(odd)) == b"odd dir/not \xff utf-8"
    assert {plant.get(one).status for one in lost} == {"UNKNOWN"}


def test_partial_files_bundles_and_young_files_are_not_dark(local: Plant) -> None:
    local.register("a/one")
    local.write("a/" + temporary_name("two", uuid4(), 1))
    young = local.write("a/young")
    later = time.time() + 1
    os.utime(young, (later, later))
    bundle = uuid4()
    local.write(f"a/{bundle}.tar")
    local.write(f"a/{bundle}.manifest.json", b"{}")
    with local.database.write() as session:
        for name in (f"a/{bundle}.tar", f"a/{bundle}.manifest.json"):
            claim_place(session, Place("here", name), object_id=bundle)
    assert local.audit().found == set()


def test_links_to_one_directory_are_not_reported_twice(plant: Plant) -> None:
    plant.register("real/one")
    plant.write("real/dark")
    (plant.folder / "link").symlink_to("real")
    plant.register("link/two", canonical="real/two")
    plant.write("other/dark")
    (plant.folder / "alias").symlink_to("other")
    plant.register("alias/three", canonical="other/three")
    audited = plant.audit()
    assert [(row.kind, row.place) for row in audited.rows] == [("DARK", "other/dark"), ("DARK", "real/dark")]


@pytest.mark.dialect
def test_registered_prefixes_are_searched_with_all_below_them(plant: Plant) -> None:
    plant.register("outside/one")
    plant.write("outside/dark")
    plant.write("in/deep/er/dark")
    plant.register("in/deep/known")
    (plant.folder / "in/link").symlink_to(plant.folder / "outside")
    found = with_prefixes(plant, "in", "in/deep", "not-there").audit().found
    assert found == {("DARK", "in/deep/er/dark")}
    assert with_prefixes(plant, ".").audit().found == {("DARK", "in/deep/er/dark"), ("DARK", "outside/dark")}


def lose(plant: Plant, kept: int, lost: int) -> list[UUID]:
    for number in range(kept):
        plant.register(f"kept/{number}")
    gone = [plant.register(f"gone/{number}") for number in range(lost)]
    shutil.rmtree(plant.folder / "gone")
    return gone


def test_too_many_losses_are_not_believed(local: Plant) -> None:
    gone = lose(local, kept=50, lost=11)
    audited = local.audit()
    assert (audited.row.status, audited.row.error_code) == ("ERROR", "audit_suspicious")
    assert audited.row.suspicious
    assert audited.row.counts["lost"] == len(audited.rows) == 11  # the report is there all the same
    assert {local.get(one).status for one in gone} == {"ACTIVE"}
    accepted = local.audit(accept_losses=True)
    assert accepted.row.status == "COMPLETE"
    assert {local.get(one).status for one in gone} == {"UNKNOWN"}


def test_what_cannot_be_seen_does_not_make_losses_credible(local: Plant, tmp_path: Path) -> None:
    """All that the audit sees is lost: the many that it can't see say nothing."""
    for number in range(120):
        local.register(f"kept/{number}")
    shutil.move(local.folder / "kept", tmp_path / "outside")
    (local.folder / "kept").symlink_to(tmp_path / "outside")
    gone = [local.register(f"gone/{number}") for number in range(12)]
    shutil.rmtree(local.folder / "gone")
    audited = local.audit()
    assert (audited.row.status, audited.row.error_code) == ("ERROR", "audit_suspicious")
    assert {local.get(one).status for one in gone} == {"ACTIVE"}


def test_dark_files_leave_room_for_losses(local: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dark files stay, audit after audit; what is lost must be heard of all the same."""
    monkeypatch.setattr(findings, "FINDINGS_MAX", 10)
    monkeypatch.setattr(first_pass, "PAGE", 1)  # so that the dark ones are met first
    local.register("a/one")
    for number in range(20):
        local.write(f"a/dark{number}")
    lost = local.register("z/lost")
    (local.folder / "z/lost").unlink()
    audited = local.audit()
    counts = audited.row.counts
    assert (counts["lost"], counts["dark"], counts["not_kept"]) == (1, 5, 15)
    assert local.get(lost).status == "UNKNOWN"


def test_a_listing_that_breaks_is_begun_anew(local: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    local.register("a/one")
    for number in range(10):
        local.write(f"a/dark{number}")
        local.write(f"a/below{number}/dark")
    monkeypatch.setattr(first_pass, "PAGE", 3)
    listed, breaks = storage_scan.files_of, iter([True])

    def breaking(*args: Any) -> Iterator[storage_scan.ScannedFile]:
        for number, entry in enumerate(listed(*args)):
            if number == 7 and next(breaks, False):
                raise ConnectionLost("broken in the middle of a listing")
            yield entry

    monkeypatch.setattr(storage_scan, "files_of", breaking)
    audited = with_prefixes(local, "a").audit()
    assert next(breaks, None) is None
    assert audited.row.status == "COMPLETE"
    places = [row.place for row in audited.rows]
    assert sorted(places) == sorted(f"a/{name}" for n in range(10) for name in (f"dark{n}", f"below{n}/dark"))


def test_few_losses_are_believed_whatever_their_share(local: Plant) -> None:
    gone = lose(local, kept=1, lost=10)
    assert local.audit().row.status == "COMPLETE"
    assert {local.get(one).status for one in gone} == {"UNKNOWN"}


@pytest.mark.dialect
def test_many_audits_of_one_machine_keep_none_of_another_waiting(database: Database) -> None:
    with database.write() as session:
        for _ in range(102):
            audit_runs.submit(session, "busy", AuditTerms(), None)
    with database.write() as session:
        assert [hold.machine for hold in audit_runs.take(session, 5)] == ["busy"]
        assert not audit_runs.anything_to_do(session)
        other = audit_runs.submit(session, "other", AuditTerms(), None).id
    with database.write() as session:
        assert audit_runs.anything_to_do(session)
        assert [hold.audit for hold in audit_runs.take(session, 5)] == [other]


@pytest.mark.dialect
def test_a_lost_attempt_begins_anew_and_the_old_one_changes_nothing(local: Plant) -> None:
    database = local.database
    with database.write() as session:
        audit = audit_runs.submit(session, "here", AuditTerms(), None).id
        audit_runs.submit(session, "here", AuditTerms(), None)
    with database.write() as session:
        (old,) = audit_runs.take(session, 5)  # one a machine
    with database.write() as session:
        audit_runs.attach(session, old, uuid4())
    with database.write() as session:  # no mover renews its run's lease
        assert [row.id for row in audit_runs.give_back_lost(session)] == [audit]
    with database.write() as session:
        hold_lease(session, old.lease, old.holder, timedelta(seconds=-1))
    with database.write() as session:
        (new,) = audit_runs.take(session, 5)
    assert (new.audit, new.attempt) == (audit, 2)
    with pytest.raises(LeaseLost), database.write() as session:
        audit_runs.end(session, old)
    with database.write() as session:
        audit_runs.end(session, new)
        assert audit_runs.get_audit(session, audit, ALL).status == "COMPLETE"


@pytest.mark.dialect
def test_old_reports_are_forgotten(local: Plant) -> None:
    local.register("a/lost")
    (local.folder / "a/lost").unlink()
    local.write("b")
    audited = local.audit()
    with local.database.write() as session:
        assert audit_runs.prune(session, timedelta(days=1), audits=10, findings=10) == (0, 0)
    with local.database.write() as session:
        assert audit_runs.prune(session, timedelta(seconds=-1), audits=10, findings=10) == (1, 1)
    with local.database.read() as session:
        assert audit_runs.select_audits(session, ALL) == ([], None)
    assert audited.row.counts["lost"] == 1


@pytest.mark.dialect
@pytest.mark.slow
def test_pages_and_memory(local: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    """3,000 objects in directories that lie in each other, 1,500 files that nobody knows: all by pages."""
    where = ["a", "a/b", "a-b", "a/b/c", "", "z"]
    wanted = set()
    for number in range(3000):
        local.register("/".join(filter(None, (where[number % 6], f"o{number}"))), b"x")
        if number % 2:
            path = "/".join(filter(None, (where[number % 6], f"d{number}")))
            local.write(path)
            wanted.add(("DARK", path))
    pages: list[int] = []
    compare = first_pass._compare

    def watching(exam: object, rows: list[object]) -> None:
        pages.append(len(rows))
        compare(exam, rows)  # type: ignore[arg-type]

    monkeypatch.setattr(first_pass, "_compare", watching)
    audited = local.audit()
    assert pages == [500] * 6
    assert audited.found == wanted
    assert audited.row.counts["directories"] == 6
    assert audited.row.counts["objects"] == 3000
    with local.database.read() as session:
        assert set(session.scalars(select(DataObject.status))) == {ObjectStatus.ACTIVE.value}
