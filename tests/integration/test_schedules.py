"""Schedules in the catalogue: no moment is fetched twice, old versions go, the newest proved one and held ones stay."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import select, update

from datamanager.domain.recurring import ScheduleRequest
from datamanager.domain.states import Verified
from datamanager.errors import DownloadFailed, ScheduleNotFound
from datamanager.sealing import Sealer
from models.access.visibility import ALL
from models.database import Database
from models.external import schedules
from models.objects.catalogue import Facts
from models.tables import DataObject, ScheduleRun, Transfer
from models.transfers import outcomes
from tests.support.bookkeeping import MACHINES, begin, get_object, get_transfer, messages, register

FIRST = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def sealer(tmp_path: Path) -> Sealer:
    return Sealer(tmp_path / "secrets.key", made_here=True)


def add(database: Database, **fields: Any) -> UUID:
    given = {"url": "https://data.example/x", "machine": "beta", "filename": "v-{date:%Y%m%d%H}", "interval": "6h"}
    with database.write() as session:
        return schedules.add_schedule(session, ScheduleRequest(**given | fields), None).id


def moment(number: int) -> datetime:
    return FIRST + timedelta(hours=6 * number)


def begin_moment(database: Database, sealer: Sealer, schedule: UUID, number: int) -> ScheduleRun:
    with database.write() as session:
        return schedules.begin_moment(session, MACHINES, sealer, schedule, moment(number))


def fetched(
    database: Database, sealer: Sealer, schedule: UUID, number: int, verified: Verified = Verified.SHA256
) -> UUID:
    """Fetch a moment as movers do; return the version."""
    run = begin_moment(database, sealer, schedule, number)
    assert run.transfer_id is not None
    hold = begin(database, run.transfer_id)
    with database.write() as session:
        return outcomes.complete_getexternal(session, hold, Facts(5, verified=verified), "https://data.example/x")


def drop(database: Database, schedule: UUID) -> list[UUID]:
    with database.write() as session:
        return schedules.drop_old_versions(session, MACHINES, schedule)


def outcomes_of(database: Database, schedule: UUID) -> list[str]:
    """Settle, and return the outcomes, the oldest first."""
    with database.write() as session:
        schedules.settle(session, schedules.unsettled(session, schedule))
    with database.read() as session:
        return [run.outcome for run in reversed(schedules.last_runs(session, schedule))]


def transfers(database: Database) -> list[Transfer]:
    with database.read() as session:
        return list(session.scalars(select(Transfer).order_by(Transfer.created)))


@pytest.mark.dialect
def test_a_moment_is_fetched_once_however_often_its_run_is_repeated(database: Database, sealer: Sealer) -> None:
    schedule = add(database, group="weather", priority="high")
    first = begin_moment(database, sealer, schedule, 0)
    again = begin_moment(database, sealer, schedule, 0)
    assert again.transfer_id == first.transfer_id
    (row,) = transfers(database)
    assert (row.group, row.priority, row.destination_place) == ("weather", "high", "v-2026010100")
    assert row.reason == f"schedule {schedule}"
    hold = begin(database, row.id)
    with database.write() as session:
        outcomes.complete_getexternal(session, hold, Facts(5), "https://data.example/x")
    assert begin_moment(database, sealer, schedule, 0).outcome == "fetched"
    assert len(transfers(database)) == 1


@pytest.mark.dialect
def test_runs_of_one_moment_at_once_make_one_transfer(migrated_url: str, sealer: Sealer) -> None:
    databases = [Database(migrated_url) for _ in range(8)]
    schedule = add(databases[0])
    with ThreadPoolExecutor(8) as pool:
        runs = list(pool.map(lambda one: begin_moment(one, sealer, schedule, 0), databases))
    assert len({run.transfer_id for run in runs}) == 1
    assert len(transfers(databases[0])) == 1
    for database in databases:
        database.close()


def test_a_failed_moment_may_be_tried_again(database: Database, sealer: Sealer) -> None:
    schedule = add(database)
    run = begin_moment(database, sealer, schedule, 0)
    assert run.transfer_id is not None
    hold = begin(database, run.transfer_id)
    with database.write() as session:
        outcomes.fail(session, hold, DownloadFailed("404"))
    assert outcomes_of(database, schedule) == ["failed"]
    again = begin_moment(database, sealer, schedule, 0)
    assert (again.outcome, again.code) == ("pending", None)
    assert again.transfer_id != run.transfer_id


def test_what_is_refused_fails_the_moment_and_nothing_else(database: Database, sealer: Sealer) -> None:
    schedule = add(database)
    register(database, "v-2026010100", "beta")
    run = begin_moment(database, sealer, schedule, 0)
    assert (run.outcome, run.code, run.transfer_id) == ("failed", "destination_exists", None)
    assert begin_moment(database, sealer, schedule, 1).outcome == "pending"
    assert begin_moment(database, sealer, add(database, machine="nowhere"), 0).code == "unknown_machine"
    with pytest.raises(ScheduleNotFound):
        begin_moment(database, sealer, uuid4(), 0)


@pytest.mark.dialect
def test_the_last_version_is_compared_with(database: Database, sealer: Sealer) -> None:
    schedule, other = add(database), add(database, skip_unchanged=False, filename="w-{date:%Y%m%d%H}")
    first = fetched(database, sealer, schedule, 0)
    run = begin_moment(database, sealer, schedule, 1)
    assert run.transfer_id is not None
    assert get_transfer(database, run.transfer_id).request["options"] == {"if_newer_than": str(first)}
    hold = begin(database, run.transfer_id)
    with database.write() as session:
        assert outcomes.complete_unchanged(session, hold, first)
    assert outcomes_of(database, schedule) == ["fetched", "unchanged"]
    row = get_transfer(database, run.transfer_id)
    assert (row.status, row.result, row.result_object_id) == ("COMPLETE", str(first), first)
    assert messages(database, row.id)[-1].body["data"]["unchanged"] is True
    begin_moment(database, sealer, schedule, 2)  # of the version, not of the moment that had none
    assert transfers(database)[-1].request["options"] == {"if_newer_than": str(first)}
    fetched(database, sealer, other, 0)
    begin_moment(database, sealer, other, 1)
    assert transfers(database)[-1].request["options"] == {}


def test_an_unchanged_download_frees_its_place(database: Database, sealer: Sealer) -> None:
    schedule = add(database)
    first = fetched(database, sealer, schedule, 0)
    run = begin_moment(database, sealer, schedule, 1)
    assert run.transfer_id is not None
    hold = begin(database, run.transfer_id)
    with database.write() as session:
        outcomes.complete_unchanged(session, hold, first)
    register(database, "v-2026010106", "beta")  # would raise DestinationExists


def test_a_version_that_was_deleted_meanwhile_is_fetched_anew(database: Database, sealer: Sealer) -> None:
    schedule = add(database)
    first = fetched(database, sealer, schedule, 0)
    run = begin_moment(database, sealer, schedule, 1)
    assert run.transfer_id is not None
    hold = begin(database, run.transfer_id)
    with database.write() as session:
        session.execute(update(DataObject).where(DataObject.id == first).values(status="DELETED"))
    with database.write() as session:
        assert not outcomes.complete_unchanged(session, hold, first)
    assert get_transfer(database, run.transfer_id).ended is None


# --- versions --------------------------------------------------------------------------------------------------------


@pytest.mark.dialect
def test_old_versions_are_deleted_by_ordinary_transfers(database: Database, sealer: Sealer) -> None:
    schedule = add(database, keep=2)
    versions = [fetched(database, sealer, schedule, number) for number in range(4)]
    assert drop(database, schedule) == [versions[1], versions[0]]
    deletes = [row for row in transfers(database) if row.kind == "delete"]
    assert {row.object_id for row in deletes} == {versions[0], versions[1]}
    assert all(row.reason == f"schedule {schedule} keeps 2" for row in deletes)
    assert drop(database, schedule) == []
    for row in deletes:
        hold = begin(database, row.id)
        with database.write() as session:
            outcomes.complete_delete(session, hold)
    assert outcomes_of(database, schedule) == ["dropped", "dropped", "fetched", "fetched"]
    assert drop(database, schedule) == []
    assert [get_object(database, one).status for one in versions] == ["DELETED", "DELETED", "ACTIVE", "ACTIVE"]


def test_the_newest_proved_version_stays(database: Database, sealer: Sealer) -> None:
    schedule = add(database, keep=1)
    versions = [
        fetched(database, sealer, schedule, number, proved)
        for number, proved in enumerate([Verified.SHA256, Verified.SIZE, Verified.NONE, Verified.NONE])
    ]
    assert set(drop(database, schedule)) == {versions[0], versions[2]}


def test_versions_whose_files_are_lost_do_not_count(database: Database, sealer: Sealer) -> None:
    schedule = add(database, keep=2)
    versions = [fetched(database, sealer, schedule, number) for number in range(5)]
    with database.write() as session:
        lost = update(DataObject).where(DataObject.id.in_(versions[3:]))
        session.execute(lost.values(status="UNKNOWN"))
    assert drop(database, schedule) == [versions[0]]


@pytest.mark.dialect
def test_held_and_busy_versions_stay(database: Database, sealer: Sealer) -> None:
    schedule = add(database, keep=1)
    versions = [fetched(database, sealer, schedule, number) for number in range(4)]
    with database.write() as session:
        session.execute(update(DataObject).where(DataObject.id == versions[0]).values(held_since=FIRST))
    from tests.support.bookkeeping import order, submit

    copying = submit(database, order("copy", versions[1], "copy"))
    assert drop(database, schedule) == [versions[2]]
    hold = begin(database, copying)
    with database.write() as session:
        outcomes.fail(session, hold, DownloadFailed("x"))
    assert drop(database, schedule) == [versions[1]]  # its turn has come
    assert drop(database, schedule) == []


def test_a_deletion_that_failed_is_tried_again(database: Database, sealer: Sealer) -> None:
    schedule = add(database, keep=1)
    versions = [fetched(database, sealer, schedule, number) for number in range(2)]
    drop(database, schedule)
    (row,) = [row for row in transfers(database) if row.kind == "delete"]
    hold = begin(database, row.id)
    with database.write() as session:
        outcomes.fail(session, hold, DownloadFailed("permission"))
    assert outcomes_of(database, schedule) == ["fetched", "fetched"]
    assert drop(database, schedule) == [versions[0]]


def test_a_deletion_that_failed_waits_for_the_next_version(database: Database, sealer: Sealer) -> None:
    """Else a file that can't be deleted would be tried again every two seconds, for ever."""
    schedule = add(database, keep=1)
    versions = [fetched(database, sealer, schedule, number) for number in range(2)]
    drop(database, schedule)
    (row,) = [row for row in transfers(database) if row.kind == "delete"]
    hold = begin(database, row.id)
    with database.write() as session:
        outcomes.fail(session, hold, DownloadFailed("permission"))
    assert drop(database, schedule) == []
    fetched(database, sealer, schedule, 2)
    assert set(drop(database, schedule)) == set(versions)


def test_without_keep_nothing_goes_and_what_others_deleted_is_no_version(database: Database, sealer: Sealer) -> None:
    schedule, few = add(database), add(database, keep=2, filename="w-{date:%Y%m%d%H}")
    for number in range(3):
        fetched(database, sealer, schedule, number)
    assert drop(database, schedule) == []
    versions = [fetched(database, sealer, few, number) for number in range(3)]
    with database.write() as session:
        session.execute(update(DataObject).where(DataObject.id == versions[2]).values(status="DELETED"))
    assert drop(database, few) == []
    assert outcomes_of(database, few) == ["fetched", "fetched", "dropped"]


def test_a_removed_schedule_leaves_its_versions(database: Database, sealer: Sealer) -> None:
    schedule = add(database, keep=1)
    version = fetched(database, sealer, schedule, 0)
    begin_moment(database, sealer, schedule, 1)
    with database.write() as session:
        schedules.remove_schedule(session, schedule, ALL)
    with database.read() as session:
        assert session.scalars(select(ScheduleRun)).all() == []
        assert schedules.rhythms(session) == []
    assert get_object(database, version).status == "ACTIVE"
    with pytest.raises(ScheduleNotFound), database.write() as session:
        schedules.remove_schedule(session, schedule, ALL)


@pytest.mark.dialect
def test_schedule_change_is_noted_until_prefect_has_it(database: Database) -> None:
    schedule = add(database)
    with database.write() as session:
        wanted = schedules.want_run(session, schedule, ALL).wanted_at
        assert schedules.want_run(session, schedule, ALL).wanted_at == wanted
    assert wanted is not None
    with database.write() as session:
        schedules.run_is_made(session, schedule, wanted - timedelta(seconds=1))
    with database.read() as session:
        assert schedules.rhythms(session)[0].wanted_at == wanted
    with database.write() as session:
        schedules.run_is_made(session, schedule, wanted)
        schedules.pause_schedule(session, schedule, ALL, paused=True)
    with database.read() as session:
        (rhythm,) = schedules.rhythms(session)
    assert (rhythm.wanted_at, rhythm.active, rhythm.interval, rhythm.cron) == (None, False, "6h", None)


@pytest.mark.dialect
def test_old_moments_are_forgotten_but_no_version(database: Database, sealer: Sealer) -> None:
    schedule = add(database)
    first = fetched(database, sealer, schedule, 0)
    run = begin_moment(database, sealer, schedule, 1)
    assert run.transfer_id is not None
    hold = begin(database, run.transfer_id)
    with database.write() as session:
        outcomes.complete_unchanged(session, hold, first)
    assert outcomes_of(database, schedule) == ["fetched", "unchanged"]
    with database.write() as session:
        assert schedules.prune_runs(session, moment(5)) == 1
    assert outcomes_of(database, schedule) == ["fetched"]
