"""Attacks by links on whoever may use one directory of a machine only: a link in it leads to what is somebody else's.

Links are made before a request and, as nobody can prevent that on the machine, between a request and its transfer.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.logging import disable_run_logger
from sqlalchemy import select

from datamanager.domain.archive_requests import ArchiveRequest
from datamanager.domain.requests import (
    CopyManyRequest,
    CopyRequest,
    DeleteRequest,
    MoveManyRequest,
    MoveRequest,
    validated,
)
from datamanager.domain.states import TransferKind
from datamanager.errors import DataManagerError, ItemsFailed, PathNotAllowed
from datamanager.identity.grant import Grant
from datamanager.identity.scopes import Scope
from datamanager.machines import Machine, Machines
from datamanager.settings import load_settings
from datamanager.sources.network.egress_guard import EgressGuard
from datamanager.transports.factory import Storages
from flows.batch.chunk import ItemsChunk
from flows.runtime.services import Services, SharedGroup
from flows.shared.shared_run import SharedRun
from flows.steps import single
from models import submission
from models.batches import results as batch_results
from models.database import Database
from models.submission import SealedRequest
from models.tables import TransferItem
from tests.integration.test_single_steps import performed
from tests.support.access import granted
from tests.support.attacked import THEIRS, Attacked
from tests.support.bundling import an_object, attempt, folder, perform, stored
from tests.support.sshd import PrivateSshd

ACTIONS = ("read:objects", "write:objects", "transfers", "delete:objects", "archive")
OWN = b"my own bytes, as many.."


@pytest.mark.attack(cwe=59, title="A link in one's own directory is registered, to get at what it leads to")
def test_link_to_what_is_foreign_is_not_registered(victim: Attacked) -> None:
    here = victim.api.folders["here"]
    (here / "mine").mkdir(exist_ok=True)
    (here / "mine" / "file").symlink_to("../theirs/secret.bin")
    (here / "mine" / "directory").symlink_to("../theirs")
    (here / "mine" / "chain").symlink_to("directory/secret.bin")
    token = victim.api.tokens.make(groups=["fire"], scopes=[f"{one}!prefix=here:mine/" for one in ACTIONS])
    with victim.untouched():
        for path, name in (("mine", "file"), ("mine", "chain"), ("mine/directory", "secret.bin")):
            for verify in ("stat", "hash", "none"):
                fields = {"machine": "here", "path": path, "filename": name, "group": "fire", "verify": verify}
                answer = victim.ask("PUT", "/DM/register", json=fields, token=token)
                assert (answer.status_code, answer.json()["code"]) == (403, "not_allowed"), (fields, answer.text)
        tree = {"machine": "here", "path": "mine/directory", "group": "fire"}
        assert victim.ask("POST", "/DM/register/tree", json=tree, token=token).status_code == 403


@pytest.fixture(params=["local", "sftp"])
def parts(request: pytest.FixtureRequest, tmp_path: Path, database: Database) -> Iterator[Services]:
    """A mover over a machine, and an archive of this host."""
    (tmp_path / "here").mkdir()
    (tmp_path / "tape").mkdir()
    if request.param == "local":
        here = Machine.model_validate({"name": "here", "transport": "local", "base_dir": str(tmp_path / "here")})
    else:
        servers: tuple[PrivateSshd, PrivateSshd] = request.getfixturevalue("sshd_pair")
        here = servers[0].machine("here", tmp_path / "here")
    tape = {"name": "tape", "transport": "local", "base_dir": str(tmp_path / "tape"), "archive": True}
    machines = Machines({"here": here, "tape": Machine.model_validate(tape)})
    storages = Storages(machines, tmp_path / "run")
    settings = load_settings(home=tmp_path / "home")
    yield Services(settings, machines, database, storages, EgressGuard(()), "mover", notify=lambda _: None)
    storages.close()


def grant_of_one_directory() -> Grant:
    return granted(*(f"{one}!prefix=here:mine/" for one in ACTIONS))


async def copy_or_move() -> str:
    found = await single.probe.fn()
    return await single.deliver(found)


def alone(
    parts: Services,
    kind: TransferKind,
    request: Any,
    of: UUID,
    lead: Callable[[], None],
    steps: Callable[[], Awaitable[str]],
) -> DataManagerError:
    """Submit a transfer, have its way lead elsewhere, and perform it; return what it fails with."""
    order = SealedRequest(kind, request, of, grant=grant_of_one_directory())
    with parts.database.write() as session:
        transfer = submission.submit(session, parts.machines, order).id
    lead()
    with pytest.raises(DataManagerError) as error:
        performed(attempt(parts, transfer), steps)
    return error.value


def exchanged(parts: Services, what: str) -> Callable[[], None]:
    """Return what makes `mine/<what>` a link to what is somebody else's of that kind."""
    here = folder(parts, "here")

    def lead() -> None:
        place = here / "mine" / what
        if place.exists():
            place.rename(here / "mine" / f"was-{what}")
        place.symlink_to("../theirs" if what == "directory" else "../theirs/file")

    return lead


@pytest.fixture
def own(parts: Services) -> dict[str, UUID]:
    """Two objects of ours; what is not ours has the same size and names."""
    theirs = folder(parts, "here") / "theirs"
    theirs.mkdir()
    (theirs / "file").write_bytes(THEIRS[: len(OWN)])
    return {path: an_object(parts, path, OWN) for path in ("mine/file", "mine/directory/file")}


def theirs_of(parts: Services) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder(parts, "here") / "theirs").iterdir()}


WAYS = {"its name": ("mine/file", "file"), "its directory": ("mine/directory/file", "directory")}


@pytest.mark.attack(cwe=59, title="What is to be read or removed is exchanged for a link out of one's own directory")
@pytest.mark.parametrize(
    ("kind", "way"),
    [
        *((TransferKind.COPY, way) for way in WAYS),
        *((TransferKind.MOVE, way) for way in WAYS),
        (TransferKind.DELETE, "its directory"),  # of a name that is a link the link itself is removed
    ],
)
def test_source_that_became_a_link_is_left(parts: Services, own: dict[str, UUID], kind: TransferKind, way: str) -> None:
    path, what = WAYS[way]
    before = theirs_of(parts)
    to = {"machine": "here", "dest": "mine/got"}
    request: CopyRequest | MoveRequest | DeleteRequest = DeleteRequest()
    if kind is not TransferKind.DELETE:
        request = validated(to, CopyRequest if kind is TransferKind.COPY else MoveRequest)
    steps = single.remove_file.fn if kind is TransferKind.DELETE else copy_or_move
    error = alone(parts, kind, request, own[path], exchanged(parts, what), steps)
    assert isinstance(error, PathNotAllowed), error
    assert theirs_of(parts) == before
    assert not (folder(parts, "here") / "mine" / "got").exists()


@pytest.mark.attack(cwe=59, title="A link in one's own directory is a destination, to write into somebody else's")
@pytest.mark.parametrize("kind", [TransferKind.COPY, TransferKind.MOVE])
def test_destination_behind_a_link_is_left(parts: Services, own: dict[str, UUID], kind: TransferKind) -> None:
    before = theirs_of(parts)
    request = validated(
        {"machine": "here", "dest": "mine/directory/new/file", "overwrite": True},
        CopyRequest if kind is TransferKind.COPY else MoveRequest,
    )
    error = alone(parts, kind, request, own["mine/file"], exchanged(parts, "directory"), copy_or_move)
    assert isinstance(error, PathNotAllowed), error
    assert theirs_of(parts) == before


@pytest.mark.attack(cwe=59, title="Items of a batch lead out of one's own directory, as sources and as destinations")
@pytest.mark.parametrize("kind", [TransferKind.COPY_MANY, TransferKind.MOVE_MANY])
def test_items_behind_links_fail_alone(parts: Services, own: dict[str, UUID], kind: TransferKind) -> None:
    before = theirs_of(parts)
    good = an_object(parts, "mine/good", OWN)
    wanted = {own["mine/file"]: "mine/a", own["mine/directory/file"]: "mine/b", good: "mine/c"}
    into = an_object(parts, "mine/into", OWN)
    items = [{"uuid": str(uuid), "machine": "here", "dest": dest} for uuid, dest in wanted.items()]
    items.append({"uuid": str(into), "machine": "here", "dest": "mine/directory/d"})
    model = CopyManyRequest if kind is TransferKind.COPY_MANY else MoveManyRequest
    order = SealedRequest(kind, validated({"items": items}, model), grant=grant_of_one_directory())
    with parts.database.write() as session:
        transfer = submission.submit(session, parts.machines, order).id
    exchanged(parts, "file")()
    exchanged(parts, "directory")()
    run = attempt(parts, transfer)
    chunk = ItemsChunk(run, run.items_to_do())
    chunk.perform()
    assert {number: error.code for number, error in chunk.errors.items()} == dict.fromkeys(
        (0, 1, 3), "path_not_allowed"
    )
    assert theirs_of(parts) == before
    assert (folder(parts, "here") / "mine" / "c").read_bytes() == OWN
    assert isinstance(run.write_now(batch_results.finish_batch), ItemsFailed)


@pytest.mark.attack(cwe=59, title="What is to be archived is exchanged for a link out of one's own directory")
@pytest.mark.parametrize("way", WAYS)
def test_nothing_foreign_is_archived(parts: Services, own: dict[str, UUID], way: str) -> None:
    before, (path, what) = theirs_of(parts), WAYS[way]
    order = SealedRequest(
        TransferKind.ARCHIVE, validated({}, ArchiveRequest), own[path], grant=grant_of_one_directory()
    )
    with parts.database.write() as session:
        transfer = submission.submit(session, parts.machines, order).id
    exchanged(parts, what)()
    assert isinstance(perform(attempt(parts, transfer)), DataManagerError)
    with parts.database.read() as session:
        assert session.scalars(select(TransferItem.error_code)).all() == ["path_not_allowed"]
    assert theirs_of(parts) == before
    assert stored(parts) == []


def test_transfers_of_one_directory_share_no_run(parts: Services, own: dict[str, UUID]) -> None:
    """In a shared run all members have their machines in common."""
    taken = []
    for number, grant in enumerate((grant_of_one_directory(), granted(*ACTIONS))):
        request = validated({"machine": "tape", "dest": f"copies/{number}"}, CopyRequest)
        wider = replace(grant, scopes=(*grant.scopes, *map(Scope.parse, ("write:objects", "transfers"))))
        order = SealedRequest(TransferKind.COPY, request, own["mine/file"], grant=wider)
        with parts.database.write() as session:
            transfer = submission.submit(session, parts.machines, order).id
        run = attempt(parts, transfer)
        taken.append((run.hold, run.row))
    with disable_run_logger():
        shared = SharedRun(parts, SharedGroup(taken), uuid4())
    assert [member.hold for member in shared.working()] == [taken[1][0]]
