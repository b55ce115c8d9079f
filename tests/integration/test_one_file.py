"""One file under two names: it is never replaced or removed by itself, nor by another object's transfer.

The names are made as people make them: a link, a bind mount, a server that shows a directory twice or folds names, two
machine names. Where mounting is not permitted hard links stand for the bind mount.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import unicodedata
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from api.context import make_context
from api.objects.own_files import own_files, require_own_file
from datamanager.domain.location import Place
from datamanager.domain.requests import (
    CopyManyRequest,
    CopyRequest,
    DeleteRequest,
    MoveManyRequest,
    MoveRequest,
    RegisterRequest,
    TransferTerms,
    validated,
)
from datamanager.domain.states import ObjectStatus, TransferKind
from datamanager.engine.attempt import Endpoint, Proof
from datamanager.engine.single.other_names import may_be_mounted_twice
from datamanager.errors import DestinationExists, ItemsFailed, PathNotAllowed
from datamanager.identity.grant import EVERYBODY
from datamanager.machines import Machine, Machines
from datamanager.settings import load_settings
from datamanager.sources.network.egress_guard import EgressGuard
from datamanager.transports.factory import Storages
from flows.batch.chunk import ItemsChunk
from flows.runtime.services import Services
from flows.runtime.transfer_run import TransferRun, make_current
from flows.steps import single
from models import submission
from models.access.visibility import ALL
from models.batches.results import finish_batch
from models.database import Database
from models.objects.catalogue import Facts, FoundFile, get_object, register_object
from models.objects.claims import free_place_of_object
from models.submission import SealedRequest
from models.transfers.items import select_items
from tests.support import bundling
from tests.support.folding_sftp import FoldingSftp
from tests.support.sshd import PrivateSshd

DATA = b"the only copy"
COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "Zürich.nc") for form in ("NFC", "NFD"))
REQUESTS: dict[TransferKind, type[TransferTerms]] = {
    TransferKind.COPY: CopyRequest,
    TransferKind.MOVE: MoveRequest,
    TransferKind.DELETE: DeleteRequest,
    TransferKind.COPY_MANY: CopyManyRequest,
    TransferKind.MOVE_MANY: MoveManyRequest,
}
NAMES = {
    "link": (("proj", "june.nc"), ("alias", "june.nc")),
    "mount": (("proj", "june.nc"), ("alias", "june.nc")),
    "aliased": (("proj", "june.nc"), ("alias", "june.nc")),
    "case": (("proj", "june.nc"), ("Proj", "June.nc")),
    "form": (("proj", COMPOSED), ("proj", DECOMPOSED)),
}
"""Directory and name of one file, twice."""


@dataclass
class House:
    """A mover over the machine `here`, where each file of a directory has a second name; `again` is another name of the
    machine, `tape` an archive. `one_entry`: the two names are one, not two hard links."""

    services: Services
    folder: Path
    kind: str
    one_entry: bool = True

    def names(self, number: str = "") -> tuple[str, str]:
        """Return two names of one file."""
        first, second = (f"{directory}/{number}{name}" for directory, name in NAMES[self.kind])
        return first, second

    def write(self, path: str, data: bytes = DATA) -> Path:
        """Put a file on `here`."""
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        if not self.one_entry and path.startswith("proj/"):
            os.link(file, self.folder / "alias" / file.name)
        return file

    def register(self, path: str, *, provisional: bool = False) -> UUID:
        """Register a file of `here`; nobody looks at it."""
        directory, _, name = path.rpartition("/")
        request = RegisterRequest(filename=name, path=directory, machine="here")
        with self.services.database.write() as session:
            return register_object(session, request, Place("here", path), Facts(None), provisional=provisional, by=None)

    def begin(self, kind: TransferKind, object_id: UUID | None = None, **fields: object) -> TransferRun:
        """Submit a request and take it as a mover does."""
        order = SealedRequest(kind, validated(dict(fields), REQUESTS[kind]), object_id, grant=None)
        with self.services.database.write() as session:
            transfer = submission.submit(session, self.services.machines, order).id
        return bundling.attempt(self.services, transfer)

    def carry(self, kind: TransferKind, object_id: UUID, dest: str, machine: str = "here") -> None:
        """Do what comes before the name is given, over what lies at the destination."""

        async def steps() -> None:
            found = await single.probe.fn()
            await single.transfer.fn(found)

        performed(self.begin(kind, object_id, machine=machine, dest=dest, overwrite=True), steps)

    def delete(self, object_id: UUID) -> None:
        """Delete an object."""
        performed(self.begin(TransferKind.DELETE, object_id), single.remove_file.fn)

    def batch(self, kind: TransferKind, *items: tuple[UUID, str]) -> list[tuple[str, str | None]]:
        """Do a batch with `overwrite`; return how its items ended."""
        wanted = [{"uuid": str(uuid), "machine": "here", "dest": dest} for uuid, dest in items]
        run = self.begin(kind, items=wanted, overwrite=True)
        ItemsChunk(run, run.items_to_do()).perform()
        with self.services.database.read() as session:
            return [(item.status, item.error_code) for item in select_items(session, run.transfer, limit=100)]

    def parts(self) -> list[str]:
        """Return the partial files, and files made to tell directories apart, that were left."""
        return [file.name for file in self.folder.rglob("*.dmpart")]


def performed(run: TransferRun, step: Callable[[], Awaitable[Any]]) -> None:
    """Perform steps of a flow run, without Prefect."""

    async def within() -> None:
        make_current(run)
        await step()

    asyncio.run(within())


@pytest.fixture(params=list(NAMES))
def house(request: pytest.FixtureRequest, tmp_path: Path, database: Database) -> Iterator[House]:
    """`link` and `mount`: this host; the others: SFTP, where a directory has two names, or names are folded."""
    kind, one_entry = str(request.param), True
    with ExitStack() as stack:
        if kind in ("link", "mount"):
            folder = tmp_path / "here"
            (folder / "proj").mkdir(parents=True)
            here = Machine.model_validate({"name": "here", "transport": "local", "base_dir": str(folder)})
            if kind == "link":
                (folder / "alias").symlink_to("proj")
            else:
                (folder / "alias").mkdir()
                bind = ["mount", "--bind", str(folder / "proj"), str(folder / "alias")]
                one_entry = not subprocess.run(bind, capture_output=True, check=False).returncode
                if one_entry:
                    stack.callback(subprocess.run, ["umount", str(folder / "alias")], check=True)
        else:
            second = {"alias": "proj"} if kind == "aliased" else {}
            server = stack.enter_context(FoldingSftp(tmp_path / "sftp", folds=kind != "aliased", second=second))
            folder, here = server.root, server.machine("here")
            (folder / "proj").mkdir()
        (tmp_path / "tape").mkdir()
        tape = {"name": "tape", "transport": "local", "base_dir": str(tmp_path / "tape"), "archive": True}
        again = here.model_copy(update={"name": "again"})
        machines = Machines({"here": here, "again": again, "tape": Machine.model_validate(tape)})
        storages = Storages(machines, tmp_path / "run")
        stack.callback(storages.close)
        settings = load_settings(home=tmp_path / "home")
        services = Services(settings, machines, database, storages, EgressGuard(()), "mover", notify=lambda _: None)
        yield House(services, folder, kind, one_entry)


@pytest.mark.parametrize("kind", [TransferKind.MOVE, TransferKind.COPY])
def test_a_transfer_refuses_its_source_under_the_second_name(house: House, kind: TransferKind) -> None:
    for number, machine in enumerate(("here", "again")):
        first, second = house.names(str(number))
        house.write(first)
        uuid = house.register(first)
        with pytest.raises(DestinationExists, match="are the same file"):
            house.carry(kind, uuid, second, machine)
        assert (house.folder / first).read_bytes() == DATA


def test_a_batch_refuses_sources_under_their_second_names(house: House) -> None:
    names = [house.names(str(number)) for number in range(5)]
    for first, _ in names:
        house.write(first)
    ended = house.batch(TransferKind.MOVE_MANY, *((house.register(first), second) for first, second in names))
    assert ended == [("ERROR", "destination_exists")] * 5
    assert all((house.folder / first).read_bytes() == DATA for first, _ in names)
    assert not house.parts()


def test_a_copy_never_replaces_a_registered_file_under_its_second_name(house: House) -> None:
    first, second = house.names()
    house.write(first)
    house.write("other/new.nc", b"another one's")
    house.register(first)
    new = house.register("other/new.nc")
    if house.one_entry:  # to replace one of two hard links leaves the other one
        with pytest.raises(DestinationExists, match="registered object"):
            house.carry(TransferKind.COPY, new, second)
    ended = house.batch(TransferKind.COPY_MANY, (new, second))
    assert ended == [("ERROR", "destination_exists") if house.one_entry else ("COMPLETE", None)]
    assert (house.folder / first).read_bytes() == DATA
    assert not house.parts()


@pytest.mark.parametrize("there", [True, False])
def test_a_batch_gives_one_file_to_one_item(house: House, there: bool) -> None:
    names = house.names()
    if there or not house.one_entry:
        house.write(names[0], b"somebody's")
    for source in ("other/a", "other/b"):  # with the same bytes
        house.write(source)
    sources = [house.register(source) for source in ("other/a", "other/b")]
    ended = house.batch(TransferKind.COPY_MANY, *zip(sources, names, strict=True))
    assert ended == [("COMPLETE", None), ("ERROR", "destination_exists")]
    assert (house.folder / names[0]).read_bytes() == DATA
    assert not house.parts()


def test_an_activate_does_not_accept_another_objects_file(house: House) -> None:
    first, second = house.names()
    house.write(first)
    house.write("other/old.nc")
    house.register(first)
    old = house.register("other/old.nc")
    assert bundling.done(house.services, "archive", old) == "Archive successful"
    result = bundling.done(house.services, "activate", old, machine="here", dest=second)
    if house.one_entry:
        assert isinstance(result, DestinationExists)
        assert bundling.status(house.services, old) == ObjectStatus.ARCHIVED
    assert (house.folder / first).read_bytes() == DATA


@pytest.mark.parametrize("way", ["delete", "move", "move_many", "archive"])
def test_a_provisional_place_is_settled_before_its_file_goes(house: House, way: str) -> None:
    first, second = house.names()
    house.write(first)
    own = house.register(first)
    twin = house.register(second, provisional=True)
    if way == "archive":
        result = bundling.done(house.services, "archive", twin)
        assert isinstance(result, DestinationExists) or not house.one_entry
    elif way == "move_many":
        ended = house.batch(TransferKind.MOVE_MANY, (twin, "other/moved.nc"))
        assert ended == [("ERROR", "destination_exists")] or not house.one_entry
    elif house.one_entry:
        with pytest.raises(DestinationExists):
            if way == "delete":
                house.delete(twin)
            else:
                house.carry(TransferKind.MOVE, twin, "other/moved.nc")
    assert (house.folder / first).read_bytes() == DATA
    if house.one_entry:
        assert bundling.status(house.services, twin) == ObjectStatus.ACTIVE
        house.delete(own)  # it was there first
        assert not (house.folder / first).exists()


@pytest.mark.parametrize("house", ["link", "aliased"], indirect=True)
def test_a_provisional_place_that_is_alone_is_settled(house: House) -> None:
    first, _ = house.names()
    house.write(first)
    uuid = house.register(first, provisional=True)
    assert house.batch(TransferKind.MOVE_MANY, (uuid, "other/moved.nc")) == [("COMPLETE", None)]
    with house.services.database.read() as session:
        assert not get_object(session, uuid, ALL).provisional


def test_a_delete_leaves_what_lies_at_an_unknown_objects_place_to_its_owner(house: House) -> None:
    first, second = house.names()
    house.write(first)
    house.register(first)
    lost = house.register(second)
    with house.services.database.write() as session:
        get_object(session, lost, ALL).status = ObjectStatus.UNKNOWN.value
    with house.services.database.write() as session:
        free_place_of_object(session, lost)
    if house.one_entry:
        with pytest.raises(DestinationExists):
            house.delete(lost)
    assert (house.folder / first).read_bytes() == DATA


def test_a_second_name_of_a_registered_file_is_not_registered(house: House) -> None:
    services = house.services
    context = make_context(services.settings, services.machines, services.database, services.storages)
    first, second, other = (Place("here", path) for path in (*house.names(), "other/june.nc"))
    for place in (first, other):
        house.write(place.path)
    end = Endpoint(second, services.machines["here"], services.storages.get("here"))
    tree = [FoundFile(place, "", Facts(len(DATA)), place) for place in (first, second, other)]
    if house.kind == "link" or not house.one_entry:  # the canonical place decides; hard links are two files
        assert own_files(context, end, tree) == tree
        return
    assert own_files(context, end, tree) == [tree[0], tree[2]]
    house.register(first.path)
    with pytest.raises(DestinationExists, match="registered object"):
        require_own_file(context, end, EVERYBODY)
    require_own_file(context, replace(end, place=other), EVERYBODY)
    again = Endpoint(Place("again", first.path), services.machines["again"], services.storages.get("again"))
    with pytest.raises(DestinationExists, match="registered object"):
        require_own_file(context, again, EVERYBODY)
    assert not own_files(context, again, [tree[0]._replace(place=again.place, canonical=again.place)])
    assert not house.parts()


@pytest.mark.parametrize("house", ["link"], indirect=True)
def test_a_link_never_leads_a_copy_among_bundles(house: House) -> None:
    house.write("other/new.nc")
    tape = Path(house.services.machines["tape"].base_dir)
    (tape / "store").mkdir()
    (tape / "bundles").symlink_to("store")
    (tape / "link").symlink_to("bundles")
    uuid = house.register("other/new.nc")
    with pytest.raises(PathNotAllowed, match="only bundles"):
        house.carry(TransferKind.COPY, uuid, "link/new.nc", "tape")
    wanted = [{"uuid": str(uuid), "machine": "tape", "dest": "link/many.nc"}]
    run = house.begin(TransferKind.COPY_MANY, items=wanted)
    ItemsChunk(run, run.items_to_do()).perform()
    assert isinstance(run.write_now(finish_batch), ItemsFailed)
    assert not list((tape / "store").iterdir())


@pytest.mark.parametrize("house", ["mount", "aliased", "case"], indirect=True)
def test_a_file_that_is_registered_during_a_copy_is_not_replaced(house: House) -> None:
    first, second = house.names()
    house.write("other/new.nc", b"another one's")
    new = house.register("other/new.nc")

    async def steps() -> None:
        found = await single.probe.fn()
        proof = await single.transfer.fn(found)
        assert isinstance(proof, Proof)
        house.write(first)
        house.register(first)
        await single.publish.fn(found, proof)

    run = house.begin(TransferKind.COPY, new, machine="here", dest=second, overwrite=True)
    if house.one_entry:
        with pytest.raises(DestinationExists, match="registered object"):
            performed(run, steps)
    else:
        performed(run, steps)
    assert (house.folder / first).read_bytes() == DATA


@pytest.mark.parametrize("transport", ["local", "sftp"])
def test_a_machine_tells_whether_a_directory_is_mounted_twice(
    request: pytest.FixtureRequest, tmp_path: Path, transport: str
) -> None:
    base = tmp_path / "base dir"
    for name in ("proj", "alias"):
        (base / name).mkdir(parents=True)
    machine = Machine.model_validate({"name": "here", "transport": "local", "base_dir": str(base)})
    if transport == "sftp":
        servers: tuple[PrivateSshd, PrivateSshd] = request.getfixturevalue("sshd_pair")
        machine = servers[0].machine("here", base)
    storages = Storages(Machines({"here": machine}), tmp_path / "run")
    try:
        with storages.get("here").session() as session:
            assert may_be_mounted_twice(session, machine) is False
            bind = ["mount", "--bind", str(base / "proj"), str(base / "alias")]
            if not subprocess.run(bind, capture_output=True, check=False).returncode:
                try:
                    assert may_be_mounted_twice(session, machine) is True
                finally:
                    subprocess.run(["umount", str(base / "alias")], check=True)
    finally:
        storages.close()
