"""What logins by certificate cost: the same copies on the same machine, with and without, by turns.

The machine is one sshd on loopback under two names. With certificates each copy logs in for itself; without,
connections are kept from copy to copy. Each copy is a single one: the run of the one before has ended. Requests go into
the catalogue with a person's grant, and the mover is woken, as the API does it: where authentication is off, HTTP
requests have no person.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from uuid import UUID

from benchmarks.control.ours import LOOK_EVERY, PATIENCE, SIZE
from benchmarks.race import Figure, Outcome, Tell, Timing, WrongResult
from datamanager.domain.location import Place
from datamanager.domain.requests import CopyRequest, RegisterRequest
from datamanager.domain.states import TransferKind, Verified
from datamanager.machines import load_machines
from datamanager.messaging.notifications import notify
from datamanager.signing.certificate import Person
from datamanager.signing.signer import Signer
from datamanager.transports.factory import open_storage
from models import submission
from models.database import Database
from models.objects.catalogue import Facts, register_object
from models.submission import SealedRequest
from models.tables import Transfer
from tests.support.access import in_role
from tests.support.callers import accounts, authority, open_folder, trusting
from tests.support.service import DataManagerService
from tests.support.sshd import PrivateSshd

WITH, WITHOUT = "certificates", "one key"
MACHINES = {WITH: "caller", WITHOUT: "shared"}
WARM_UP = 5
PAUSE = 0.2
"""Seconds before a request: closing the sessions of the copy before is no part of this one's start."""


class Copies:
    """A running service with one object on each machine."""

    def __init__(self, place: Path, server: PrivateSshd, account: str) -> None:
        tables = []
        for acts_as in MACHINES.values():
            base = place / acts_as
            base.mkdir()
            base.chmod(0o777)
            values: dict[str, object] = {"transport": "sftp", "host": server.host, "port": server.port}
            values |= {"base_dir": os.fspath(base), "known_hosts": os.fspath(server.known_hosts), "acts_as": acts_as}
            values |= {"username": account, "identity_file": os.fspath(server.client_key), "allow_programs": True}
            tables += [f"[machines.{acts_as}]\n", *(f"{key} = {json.dumps(one)}\n" for key, one in values.items())]
        (place / "machines.toml").write_text("".join(tables))
        self._machines = load_machines(place / "machines.toml")
        self._grant = replace(in_role("admin", person=account), principal=account)
        env = {"DM_MACHINES": os.fspath(place / "machines.toml"), "DM_SSH_CA": os.fspath(place / "ca")}
        self.service = DataManagerService(place / "dm", env, tree=True)
        self._number = 0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run the service meanwhile."""
        with self.service:
            self.database = Database(f"sqlite+pysqlite:///{self.service.home / 'catalogue.db'}")
            self._sources = {name: self._register(name) for name in MACHINES.values()}
            yield
            self.database.close()

    def copy(self, machine: str) -> float:
        """Ask for a copy within a machine and wait for its end; return the seconds from the request on."""
        self._number += 1
        request = CopyRequest(machine=machine, dest=f"copies/{self._number}")
        time.sleep(PAUSE)
        begin = time.perf_counter()
        with self.database.write() as session:
            sealed = SealedRequest(TransferKind.COPY, request, self._sources[machine], grant=self._grant)
            task = submission.submit(session, self._machines, sealed).id
        notify(self.service.home / "run", "mover", "queued")
        while not (row := self._row(task)).ended:
            if time.perf_counter() > begin + PATIENCE:
                raise WrongResult(f"not done within {PATIENCE:g} s")
            time.sleep(LOOK_EVERY)
        took = time.perf_counter() - begin
        if row.error_code is not None:
            raise WrongResult(f"a copy ended in {row.error_code}: {row.error_detail}")
        return took

    def _register(self, machine: str) -> UUID:
        base = Path(self._machines[machine].base_dir)
        (base / "source").write_bytes(os.urandom(SIZE))
        (base / "copies").mkdir()
        (base / "copies").chmod(0o777)
        request = RegisterRequest(filename="source", path="", machine=machine, size=SIZE)
        place = Place.of(self._machines[machine], "source")
        with self.database.write() as session:
            return register_object(session, request, place, Facts(SIZE, verified=Verified.SIZE), by=None)

    def _row(self, task: UUID) -> Transfer:
        with self.database.read() as session:
            return session.get_one(Transfer, task)


class Logins:
    """Logins to one machine, by a certificate and by a key; each is a connection of its own."""

    def __init__(self, place: Path, server: PrivateSshd, account: str, signer: Signer) -> None:
        self._machines = {
            acts_as: server.machine(acts_as, place, username=account, acts_as=acts_as) for acts_as in MACHINES.values()
        }
        self._control_dir = place / "control"
        self._person, self._signer = Person(account, "benchmark", account), signer

    def log_in(self, machine: str) -> float:
        """Return the seconds until the SFTP server has answered."""
        storage = open_storage(
            self._machines[machine], control_dir=self._control_dir, person=self._person, signer=self._signer
        )
        begin = time.perf_counter()
        with storage.session():
            took = time.perf_counter() - begin
        storage.close()
        return took


def start(_: Path, copies: int, rounds: int, tell: Tell) -> Outcome:
    """Time single copies from request to end, with and without certificates, and logins alone."""
    with open_folder() as place, accounts(1) as (account,):
        signer = authority(place)
        with trusting(place, 1) as (server,):
            logins = _by_turns("login", Logins(place, server, account, signer).log_in, copies, rounds, tell)
            contender = Copies(place, server, account)
            with contender.running():
                took = _by_turns("start-certificate", contender.copy, copies, rounds, tell)
    group, what = "start-certificate", "1 KiB copy over SSH, request to COMPLETE, p50: what certificates add"
    return Outcome(
        (
            Figure(group, what, WITH, WITHOUT, 5, _more(took), "%"),
            Figure(group, "login, p50: what certificates add", WITH, WITHOUT, 5, _more(logins), "%"),
        ),
        tuple(Timing(group, name, tuple(took[name]), 1, "copies") for name in MACHINES),
        WITHOUT,
    )


def _by_turns(what: str, act: Callable[[str], float], times: int, rounds: int, tell: Tell) -> dict[str, list[float]]:
    """Return the medians of the rounds, with and without; by turns, so that what else runs on this host meets both."""
    took: dict[str, list[float]] = {name: [] for name in MACHINES}
    for _ in range(WARM_UP):
        for machine in MACHINES.values():
            act(machine)
    for number in range(1, rounds + 1):
        some: dict[str, list[float]] = {name: [] for name in MACHINES}
        for _ in range(times):
            for name, machine in MACHINES.items():
                some[name].append(act(machine))
        for name, seconds in some.items():
            took[name].append(statistics.median(seconds))
        tell(f"{what} {number}: " + ", ".join(f"{name} {took[name][-1] * 1000:.0f} ms" for name in MACHINES))
    return took


def _more(took: dict[str, list[float]]) -> tuple[float, ...]:
    return tuple(100 * (mine / other - 1) for mine, other in zip(took[WITH], took[WITHOUT], strict=True))
