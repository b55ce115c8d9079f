"""Archives with bytes: wherever an attempt dies, an object is ACTIVE with its file, or ARCHIVED and verified."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select

from datamanager.domain.states import Phase
from datamanager.engine.control import Control
from datamanager.errors import DataManagerError, SourceNotRemoved
from datamanager.machines import Machines, parse_machines
from datamanager.settings import load_settings
from datamanager.sources.network.egress_guard import EgressGuard
from datamanager.transports.factory import Storages
from flows.archive import recalling
from flows.cleanup.leftovers import reclaim
from flows.runtime.services import Services
from models.archive import bundles
from models.database import Database
from models.tables import Bundle
from models.transfers import outcomes, queue
from models.transfers.items import select_items
from tests.support.bookkeeping import claims
from tests.support.bundling import (
    an_object,
    attempt,
    bundle_file,
    done,
    folder,
    perform,
    status,
    stored,
    submit,
)

PHASES = (Phase.PROBE, Phase.TRANSFER, Phase.VERIFY, Phase.PUBLISH, Phase.COMMIT, Phase.CLEANUP)


class Killed(BaseException):
    """The mover is gone."""


class Dying(Control):
    """The control of an attempt that dies when it enters a phase."""

    def __init__(self, last: Phase) -> None:
        super().__init__()
        self._last = last

    def enter(self, phase: Phase, total: int | None = None) -> None:
        """Die, or go on."""
        if phase is self._last:
            raise Killed
        super().enter(phase, total)


@pytest.fixture
def machines(tmp_path: Path) -> Machines:
    table = '[machines.{name}]\ntransport = "local"\nbase_dir = "{path}"\n'
    for name in ("here", "there", "tape"):
        (tmp_path / name).mkdir()
    text = "".join(table.format(name=name, path=tmp_path / name) for name in ("here", "there", "tape"))
    return parse_machines(
        f'{text}archive = true\nstage_poll = ["test", "!", "-e", "{{path}}.on-tape"]\n', "machines.toml"
    )


@pytest.fixture
def parts(database: Database, machines: Machines, tmp_path: Path) -> Iterator[Services]:
    """A mover's parts over a real catalogue and three folders."""
    storages = Storages(machines, tmp_path / "run")
    settings = load_settings(home=tmp_path / "home", bundle_size=100_000)
    yield Services(settings, machines, database, storages, EgressGuard(()), "mover", notify=lambda _: None)
    storages.close()


@pytest.mark.parametrize("compress", ["none", "zstd"])
@pytest.mark.parametrize("phase", PHASES)
def test_wherever_an_attempt_dies_the_next_one_completes_it(parts: Services, phase: Phase, compress: str) -> None:
    data = {f"in/{number}": os.urandom(5000) for number in range(4)}
    uuids = [an_object(parts, path, content) for path, content in data.items()]
    transfer = submit(parts, "archive", *uuids, compress=compress)
    work = attempt(parts, transfer, Dying(phase))
    with pytest.raises(Killed):
        perform(work)
    found = {status(parts, uuid) for uuid in uuids}
    assert found == ({"ARCHIVED"} if phase is Phase.CLEANUP else {"ACTIVE"})
    assert {path: (folder(parts, "here") / path).read_bytes() for path in data} == data
    with parts.database.write() as session:
        queue.requeue(session, work.hold)
    assert perform(attempt(parts, transfer)) == "4 items done"
    assert {status(parts, uuid) for uuid in uuids} == {"ARCHIVED"}
    assert not [path for path in data if (folder(parts, "here") / path).exists()]
    assert len(stored(parts)) == 2, "one bundle and its manifest, whatever attempts there were"
    assert {claim[1] for claim in claims(parts.database)} == {f"tape:bundles/{name}" for name in bundle_names(parts)}
    assert done(parts, "activate", *uuids) == "4 items done"
    assert {path: (folder(parts, "here") / path).read_bytes() for path in data} == data


def bundle_names(parts: Services) -> list[str]:
    below = folder(parts, "tape") / "bundles"
    return [str(file.relative_to(below)) for file in below.rglob("*") if file.is_file()]


def test_what_a_transfer_that_ended_left_is_removed(parts: Services) -> None:
    uuid = an_object(parts, "a", b"x" * 1000)
    work = attempt(parts, submit(parts, "archive", uuid), Dying(Phase.COMMIT))
    with pytest.raises(Killed):
        perform(work)
    assert len(stored(parts)) == 2
    with parts.database.write() as session:
        outcomes.fail(session, work.hold, DataManagerError("given up"))
    assert (status(parts, uuid), (folder(parts, "here") / "a").exists()) == ("ACTIVE", True)
    assert reclaim(parts) == 1
    assert (stored(parts), reclaim(parts)) == ([], 0)
    assert {claim[1] for claim in claims(parts.database)} == {"here:a"}


def test_a_source_that_changed_stays_and_is_told_of(parts: Services) -> None:
    uuid = an_object(parts, "a", b"before")
    transfer = submit(parts, "archive", uuid)
    work = attempt(parts, transfer, Dying(Phase.CLEANUP))
    with pytest.raises(Killed):
        perform(work)
    (folder(parts, "here") / "a").write_bytes(b"somebody else's")
    with parts.database.write() as session:
        queue.requeue(session, work.hold)
    outcome = perform(attempt(parts, transfer))
    assert isinstance(outcome, SourceNotRemoved)
    assert (status(parts, uuid), (folder(parts, "here") / "a").read_bytes()) == ("ARCHIVED", b"somebody else's")
    taken = done(parts, "activate", uuid)
    assert isinstance(taken, DataManagerError)
    assert (taken.code, status(parts, uuid)) == ("destination_exists", "ARCHIVED")
    assert done(parts, "activate", uuid, overwrite=True) == "Activate successful"
    assert (folder(parts, "here") / "a").read_bytes() == b"before"


def test_a_source_that_was_written_within_the_same_second_stays(parts: Services) -> None:
    uuids = [an_object(parts, f"in/{number}", b"the first version") for number in range(2)]
    transfer = submit(parts, "archive", *uuids)
    work = attempt(parts, transfer, Dying(Phase.CLEANUP))
    with pytest.raises(Killed):
        perform(work)
    file = folder(parts, "here") / "in/1"
    mtime = int(file.stat().st_mtime)
    file.write_bytes(b"the other version")
    os.utime(file, (mtime, mtime))
    with parts.database.write() as session:
        queue.requeue(session, work.hold)
    assert isinstance(perform(attempt(parts, transfer)), DataManagerError)
    assert [one.name for one in file.parent.iterdir()] == ["1"]
    assert file.read_bytes() == b"the other version"


def test_a_missing_file_fails_alone(parts: Services) -> None:
    uuids = [an_object(parts, f"{number}", b"x" * number) for number in range(5)]
    (folder(parts, "here") / "3").unlink()
    outcome = done(parts, "archive", *uuids)
    assert isinstance(outcome, DataManagerError)
    assert outcome.detail.startswith("1 of 5 items failed, first: source_missing")
    assert [status(parts, uuid) for uuid in uuids] == [*["ARCHIVED"] * 3, "ACTIVE", "ARCHIVED"]
    alone = done(parts, "archive", uuids[3])
    assert isinstance(alone, DataManagerError)
    assert (alone.code, reclaim(parts)) == ("source_missing", 1)


def test_bundles_are_as_large_as_the_settings_say(parts: Services) -> None:
    sizes = [60_000, 60_000, 30_000, 250_000, 10]
    uuids = [an_object(parts, f"{number}", os.urandom(size)) for number, size in enumerate(sizes)]
    assert done(parts, "archive", *uuids) == "5 items done"
    used = [bundle_file(parts, uuid) for uuid in uuids]
    assert [used.index(file) for file in used] == [0, 1, 1, 3, 4]
    several = [an_object(parts, f"alone/{number}", b"1") for number in range(2)]
    assert done(parts, "archive", *several, pack="none") == "2 items done"
    assert {bundle_file(parts, uuid).suffix for uuid in several} == {".data"}
    assert {bundle_file(parts, uuid).read_bytes() for uuid in several} == {b"1"}


def test_a_kept_file_is_accepted_only_if_it_still_has_the_bytes(parts: Services) -> None:
    right, wrong = an_object(parts, "right", b"bytes"), an_object(parts, "wrong", b"bytes")
    assert done(parts, "archive", right, wrong, keep_source=True) == "2 items done"
    (folder(parts, "here") / "wrong").write_bytes(b"other")
    outcome = done(parts, "activate", right, wrong)
    assert isinstance(outcome, DataManagerError)
    assert "destination_exists" in outcome.detail
    assert [status(parts, uuid) for uuid in (right, wrong)] == ["ACTIVE", "ARCHIVED"]
    assert (folder(parts, "here") / "wrong").read_bytes() == b"other"


def test_a_bundle_stays_while_an_object_needs_it(parts: Services) -> None:
    first, second = an_object(parts, "a", b"first"), an_object(parts, "b", b"second")
    assert done(parts, "archive", first, second) == "2 items done"
    file = bundle_file(parts, first)
    assert done(parts, "activate", first) == "Activate successful"
    assert (reclaim(parts), file.exists()) == (0, True)
    assert done(parts, "activate", second, machine="there", dest="c") == "Activate successful"
    assert (folder(parts, "there") / "c").read_bytes() == b"second"
    assert (reclaim(parts), stored(parts)) == (1, [])
    with parts.database.read() as session:
        assert [row.status for row in session.scalars(select(Bundle))] == ["REMOVED"]


def test_bundles_on_tape_are_left_for_later(parts: Services) -> None:
    uuids = [an_object(parts, name, os.urandom(60_000)) for name in "ab"]
    assert done(parts, "archive", *uuids) == "2 items done"
    on_tape = Path(f"{bundle_file(parts, uuids[0])}.on-tape")
    on_tape.touch()
    work = attempt(parts, submit(parts, "activate", *uuids))
    with parts.database.read() as session:
        rows = select_items(session, work.transfer, limit=10)
    groups = recalling.plan(work, rows)
    assert sorted(map(list, groups)) == [[0], [1]]
    here, staging = recalling.split(work, groups, rows)
    assert [list(group) for group in here] == [[1]]
    assert staging is not None
    assert staging.again == timedelta(seconds=60)
    on_tape.unlink()
    assert recalling.split(work, groups, rows) == (groups, None)
    with parts.database.read() as session:
        assert set(bundles.members_of(session, uuids)) == set(uuids)
