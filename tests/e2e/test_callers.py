"""A mover that works for two people on two machines which trust its authority: each file and each login is theirs."""

from __future__ import annotations

import base64
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from pwd import getpwnam
from typing import Any
from uuid import UUID

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import load_ssh_private_key

from datamanager.domain.location import Place
from datamanager.domain.requests import CopyManyRequest, CopyRequest, DeleteRequest, MoveRequest, RegisterRequest
from datamanager.domain.states import TransferKind, TransferStatus, Verified
from datamanager.machines import Machines, load_machines
from models import submission
from models.database import Database
from models.machines import health
from models.objects.catalogue import Facts, register_object
from models.submission import SealedRequest
from models.tables import DataObject, Transfer
from tests.support.access import in_role
from tests.support.callers import accounts, authority, open_folder, trusting
from tests.support.searching import ProcessWatch, files_below, places_of, told_by_prefect
from tests.support.service import DataManagerService
from tests.support.site import eventually, some_bytes
from tests.support.sshd import PrivateSshd

NOBODY = None


@dataclass
class House:
    """A service without authentication, whose transfers are submitted with grants all the same."""

    service: DataManagerService
    database: Database
    machines: Machines
    servers: dict[str, PrivateSshd]
    people: list[str]

    def folder(self, machine: str) -> Path:
        return Path(self.machines[machine].base_dir)

    def register(self, machine: str, name: str, owner: str, data: bytes) -> UUID:
        """Put a file that only its owner can read on a machine, and enter it."""
        file = self.folder(machine) / name
        file.write_bytes(data)
        file.chmod(0o600)
        shutil.chown(file, owner, owner)
        request = RegisterRequest(filename=name, path="", machine=machine, size=len(data))
        place = Place.of(self.machines[machine], name)
        with self.database.write() as session:
            return register_object(session, request, place, Facts(len(data), verified=Verified.SIZE), by=None)

    def submit(
        self, who: str | None, *requests: tuple[TransferKind, Any, UUID | None], reason: str | None = None
    ) -> list[UUID]:
        """Submit requests together; `reason`: why the service does it itself."""
        grant = None if who is None else replace(in_role("admin", person=f"{who}@site"), principal=who)
        with self.database.write() as session:
            return [
                submission.submit(
                    session, self.machines, SealedRequest(kind, fields, of, reason=reason, grant=grant)
                ).id
                for kind, fields, of in requests
            ]

    def ended(self, transfers: Sequence[UUID]) -> list[Transfer]:
        """Wait for their ends."""

        def look() -> list[Transfer] | None:
            with self.database.read() as session:
                rows = [session.get_one(Transfer, one) for one in transfers]
                return rows if all(row.ended for row in rows) else None

        return eventually(look, "transfers ended")

    @contextmanager
    def drained(self, machine: str) -> Iterator[None]:
        """Let transfers of a machine wait meanwhile."""
        with self.database.write() as session:
            health.drain(session, machine)
        try:
            yield
        finally:
            with self.database.write() as session:
                health.undrain(session, machine)

    def object(self, of: UUID | None) -> DataObject:
        with self.database.read() as session:
            return session.get_one(DataObject, of)

    def logged(self, machine: str, what: str) -> int:
        """Count what sshd says of logins."""
        lines = self.servers[machine].log.read_text().splitlines()
        return sum("Accepted publickey" in line and what in line for line in lines)


@pytest.fixture(scope="module")
def house(prefect_api_url: str) -> Iterator[House]:
    with open_folder() as place, accounts(2) as people:
        authority(place)
        with trusting(place, 2) as servers:
            named = dict(zip(("one", "two"), servers, strict=True))
            tables = []
            for name, server in named.items():
                base = place / name
                base.mkdir()
                base.chmod(0o777)
                values = {"transport": "sftp", "host": server.host, "port": server.port, "acts_as": "caller"}
                values |= {"base_dir": os.fspath(base), "known_hosts": os.fspath(server.known_hosts)}
                values |= {"service_login": people[0]}
                tables.append(f"[machines.{name}]\n")
                tables += [f"{key} = {json.dumps(value)}\n" for key, value in values.items()]
            (place / "machines.toml").write_text("".join(tables))
            env = {
                "DM_MACHINES": os.fspath(place / "machines.toml"),
                "DM_SSH_CA": os.fspath(place / "ca"),
                "DM_PREFECT_API_URL": prefect_api_url,
            }
            service = DataManagerService(place / "dm", env)
            with service:
                database = Database(f"sqlite+pysqlite:///{service.home / 'catalogue.db'}")
                yield House(service, database, load_machines(place / "machines.toml"), named, people)
                database.close()


def copy(of: UUID, dest: str, **fields: Any) -> tuple[TransferKind, Any, UUID | None]:
    return TransferKind.COPY, CopyRequest(machine="two", dest=dest, **fields), of


def test_copies_of_two_people_are_theirs(house: House) -> None:
    data = [some_bytes(3_000_000), some_bytes(1000)]
    sources = [house.register("one", f"of-{who}", who, some) for who, some in zip(house.people, data, strict=True)]
    tasks = [
        task
        for who, of in zip(house.people, sources, strict=True)
        for task in house.submit(who, copy(of, f"copy-{who}"))
    ]
    for who, some, row in zip(house.people, data, house.ended(tasks), strict=True):
        assert (row.status, row.error_code) == (TransferStatus.COMPLETE.value, None)
        copied = house.folder("two") / f"copy-{who}"
        assert copied.read_bytes() == some  # read back over SFTP: certificates allow no programs
        assert copied.stat().st_uid == getpwnam(who).pw_uid
        new = house.object(row.result_object_id)
        assert (new.acted_as, new.verified) == (who, Verified.SHA256.value)
        for machine in house.servers:
            assert house.logged(machine, f"ID dm:{row.id}:{who}@site ") == 1


def test_what_another_person_owns_can_not_be_read(house: House) -> None:
    first, second = house.people
    of = house.register("one", "private", first, b"secret")
    (row,) = house.ended(house.submit(second, copy(of, "stolen", verify="size")))
    assert row.error_code == "permission_denied"
    assert not (house.folder("two") / "stolen").exists()


def test_without_a_login_nothing_is_reached(house: House) -> None:
    of = house.register("one", "nobodys", house.people[0], b"data")
    before = {machine: house.logged(machine, "") for machine in house.servers}
    (row,) = house.ended(house.submit(NOBODY, copy(of, "nobodys")))
    assert (row.status, row.error_code, row.attempts) == (TransferStatus.ERROR.value, "no_login", 1)
    assert {machine: house.logged(machine, "") for machine in house.servers} == before
    assert house.object(of).status == "ACTIVE"


def test_small_copies_that_wait_log_in_each_for_itself(house: House) -> None:
    first, second = house.people
    with house.drained("two"):
        kinds = [
            copy(house.register("one", f"small-{n}", (first, second)[n % 2], b"x"), f"small-{n}") for n in range(10)
        ]
        tasks = [task for n, one in enumerate(kinds) for task in house.submit((first, second)[n % 2], one)]
    for number, row in enumerate(house.ended(tasks)):
        assert (row.error_code, row.shared_run) == (None, None)
        assert house.logged("two", f"ID dm:{row.id}:") >= 1  # more, when others needed its idle session's place
        owner = (house.folder("two") / f"small-{number}").stat().st_uid
        assert owner == getpwnam((first, second)[number % 2]).pw_uid


def test_a_batch_and_a_move_are_the_persons(house: House) -> None:
    who = house.people[0]
    names = [f"item-{number}" for number in range(100)]
    of = [house.register("one", name, who, name.encode()) for name in names]
    items = [{"uuid": str(one), "dest": f"batch/{name}"} for one, name in zip(of, names, strict=True)]
    request = CopyManyRequest.model_validate({"machine": "two", "items": items})
    (row,) = house.ended(house.submit(who, (TransferKind.COPY_MANY, request, None)))
    assert row.error_code is None
    for name in names:
        file = house.folder("two") / "batch" / name
        assert (file.read_text(), file.stat().st_uid) == (name, getpwnam(who).pw_uid)
    moved = house.register("one", "moving", who, b"moved")
    (row,) = house.ended(house.submit(who, (TransferKind.MOVE, MoveRequest(machine="two", dest="moved"), moved)))
    assert row.error_code is None
    assert not (house.folder("one") / "moving").exists()
    assert house.object(moved).acted_as == who


def test_what_a_rule_requests_is_the_services_own(house: House) -> None:
    of = house.register("two", "expired", house.people[0], b"data")
    delete = (TransferKind.DELETE, DeleteRequest(), of)
    (row,) = house.ended(house.submit(NOBODY, delete, reason="retention: old"))
    assert row.error_code is None
    assert not (house.folder("two") / "expired").exists()
    assert house.logged("two", f"ID dm:{row.id}:data-manager ") == 1


@pytest.mark.attack(cwe=312, title="Private keys, and the authority's, are looked for in all that is left")
def test_no_private_key_is_anywhere(house: House, prefect_api_url: str) -> None:
    """Runs last. The keys of certificates are known to their process alone: any private key is looked for."""
    data = some_bytes(20 << 20)  # large enough for OpenSSH, whose programs are processes of their own
    of = house.register("one", "large", house.people[0], data)
    with ProcessWatch(house.service) as watch:
        (row,) = house.ended(house.submit(house.people[0], copy(of, "large")))
    assert row.error_code is None
    assert any(one.partition(b"\0")[0].rpartition(b"/")[2] == b"ssh" for one in watch.seen)
    file = house.service.home.parent / "ca"
    key = load_ssh_private_key(file.read_bytes(), None)
    assert isinstance(key, EllipticCurvePrivateKey)
    raw = key.private_numbers().private_value.to_bytes(32)
    lines = file.read_bytes().splitlines()[1:-1]
    needles = [
        raw,
        raw.hex().encode(),
        base64.b64encode(raw).rstrip(b"="),
        *(line for line in lines[1:] if len(line) > 16),
    ]
    needles += [b"PRIVATE KEY-----", b"openssh-key-v1", base64.b64encode(b"openssh-key-v1\0")[:18]]
    seen = {**files_below(house.service.home), **told_by_prefect(prefect_api_url)}
    seen |= {f"process {number}": one for number, one in enumerate(watch.seen)}
    assert str(row.id) in str(seen)  # the search can find something
    assert places_of(needles, {"its own file": file.read_bytes()}, lambda _: False) == {"its own file"}
    assert places_of(needles, seen, lambda _: False) == set()
