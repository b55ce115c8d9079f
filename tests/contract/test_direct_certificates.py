"""Direct transfers by certificate: the source gets one for a single program at the destination, and keeps nothing."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from pwd import getpwnam
from uuid import uuid4

import pytest

from datamanager.domain.location import Place
from datamanager.domain.states import Route, TransferKind
from datamanager.engine.attempt import Attempt, Endpoint
from datamanager.engine.control import Control
from datamanager.engine.single import transfer
from datamanager.engine.single.probe import probe
from datamanager.errors import Cancelled
from datamanager.machines import Machines
from datamanager.signing.builtin_ca import BuiltinCa
from datamanager.signing.certificate import Person
from datamanager.transports.factory import Storages
from datamanager.transports.remote.third_party_push import push_target
from tests.support.callers import accounts
from tests.support.process import command_line
from tests.support.sshd import PrivateSshd

pytestmark = pytest.mark.server
DATA = os.urandom(3 * 2**20 + 7)
LARGE = 1 << 32
TIMEOUT = 60.0
PROGRAMS = {"acts_as": "caller", "allow_programs": True, "direct": True}


@pytest.fixture(scope="module")
def person() -> Iterator[Person]:
    with accounts(1) as (name,):
        yield Person(name, "task-17", "jo@site")


@pytest.fixture(params=["openssh", "paramiko"])
def connection(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    return kind


class Pair:
    """Two machines as a person uses them, and a file on the first."""

    def __init__(self, storages: Storages, machines: Machines) -> None:
        self.storages, self.machines = storages, machines
        name = uuid4().hex
        self.source = Path(machines["a"].base_dir) / name
        self.source.write_bytes(DATA)
        self.source.chmod(0o644)
        ends = [Endpoint(Place(machine, name), machines[machine], storages.get(machine)) for machine in ("a", "b")]
        self.job = Attempt(uuid4(), 1, TransferKind.COPY, ends[0], ends[1])


@contextmanager
def between(
    servers: list[PrivateSshd], place: Path, control_dir: Path, ca: BuiltinCa, person: Person, **keys: object
) -> Iterator[Pair]:
    """Open both machines; `a_…` and `b_…` are keys of one of them."""
    machines = {}
    for name, server in zip("ab", servers, strict=True):
        base = place / name
        base.mkdir(exist_ok=True)
        base.chmod(0o777)
        own = {key.removeprefix(f"{name}_"): value for key, value in keys.items() if key.startswith(f"{name}_")}
        machines[name] = server.machine(name, base, connection=keys["connection"], **{**PROGRAMS, **own})
    with (
        closing(Storages(Machines(machines), control_dir, ca)) as shared,
        shared.acting_as(person) as storages,
    ):
        yield Pair(storages, Machines(machines))


def left_behind(person: Person, servers: list[PrivateSshd]) -> list[str]:
    """Return what the person's programs have left, after a while: processes, and files in /tmp."""
    deadline = time.monotonic() + TIMEOUT
    while True:
        owner = getpwnam(str(person.principal)).pw_uid
        files = [os.fspath(one) for one in Path("/tmp").iterdir() if is_of(one, owner)]
        running = [one.name for one in Path("/proc").iterdir() if one.name.isdigit() and is_of(one, owner)]
        lines = [command_line(int(pid)) for pid in running]
        left = files + [line for line in lines if line and not line.startswith("sshd")]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.05)


def is_of(path: Path, owner: int) -> bool:
    try:
        return path.lstat().st_uid == owner
    except FileNotFoundError:
        return False


def test_a_file_is_pushed_by_certificate_and_nothing_is_left(
    servers: list[PrivateSshd], place: Path, control_dir: Path, ca: BuiltinCa, person: Person, connection: str
) -> None:
    with between(servers, place, control_dir, ca, person, connection=connection) as pair:
        found = probe(pair.job)
        assert found.route is Route.DIRECT
        before = servers[1].log.read_text()
        moved = transfer.push(pair.job, found, Control())
        assert moved is not None
        assert Path(found.part).read_bytes() == DATA
        assert Path(found.part).stat().st_uid == getpwnam(str(person.principal)).pw_uid
        said = servers[1].log.read_text().removeprefix(before)
        assert "ID dm:task-17:jo@site" in said
        assert "forced-command (key-option)" in said or "Starting session: forced-command" in said
        assert not left_behind(person, servers)


def test_it_goes_on_at_an_offset(
    servers: list[PrivateSshd], place: Path, control_dir: Path, ca: BuiltinCa, person: Person
) -> None:
    with between(servers, place, control_dir, ca, person, connection="openssh") as pair:
        found, offset = probe(pair.job), 2**20 + 1
        with pair.job.target.storage.session() as session, session.create(found.part) as writer:
            writer.write(0, DATA[:offset])
        assert transfer.push(pair.job, found, Control(), offset) is not None
        assert Path(found.part).read_bytes() == DATA


def test_the_shared_account_of_a_source_can_push_too(
    servers: list[PrivateSshd], place: Path, control_dir: Path, ca: BuiltinCa, person: Person, connection: str
) -> None:
    with between(
        servers, place, control_dir, ca, person, connection=connection, a_acts_as="shared", a_forward_agent=True
    ) as pair:
        found = probe(pair.job)
        assert transfer.push(pair.job, found, Control()) is not None
        assert Path(found.part).stat().st_uid == getpwnam(str(person.principal)).pw_uid


def test_no_key_is_seen_and_a_cancel_ends_all(
    servers: list[PrivateSshd], place: Path, control_dir: Path, ca: BuiltinCa, person: Person, connection: str
) -> None:
    with between(servers, place, control_dir, ca, person, connection=connection) as pair:
        with pair.source.open("r+b") as file:
            file.truncate(LARGE)
        found, control, seen = probe(pair.job), Control(), list[bytes]()
        pids = list[int]()

        def look(_: int = 0) -> None:
            if Path(found.part).exists() and Path(found.part).stat().st_size > 2**20 and not seen:
                pids.extend(pid for server in servers for pid in server.descendants())
                for pid in pids:
                    for what in ("cmdline", "environ"):
                        try:
                            seen.append(Path(f"/proc/{pid}/{what}").read_bytes())
                        except OSError:
                            continue
                owner = getpwnam(str(person.principal)).pw_uid
                for folder in Path("/tmp").iterdir():
                    if is_of(folder, owner) and folder.is_dir():
                        seen.extend(one.read_bytes() for one in folder.iterdir() if one.is_file())
                control.stop(Cancelled("enough"))

        class Watching(Control):
            """Looks at the machines while the push works."""

            def check(self) -> None:
                look()
                control.check()

        with pytest.raises(Cancelled):
            transfer.push(pair.job, found, Watching())
        assert any(b"ssh-ed25519-cert-v01@openssh.com AAAA" in one for one in seen)
        assert not [one for one in seen if b"PRIVATE KEY" in one]
        assert not left_behind(person, servers)
        with pair.job.target.storage.session() as session:
            session.remove(found.part)
        pair.source.unlink()


def test_a_certificate_from_elsewhere_or_none_leaves_it_to_the_relay(
    servers: list[PrivateSshd], place: Path, control_dir: Path, ca: BuiltinCa, person: Person
) -> None:
    with between(servers, place, control_dir, ca, person, connection="openssh", a_direct_from=["192.0.2.1"]) as pair:
        found = probe(pair.job)
        assert transfer.push(pair.job, found, Control()) is None
        assert not left_behind(person, servers)
        assert transfer.send(pair.job, found, Control()).size == len(DATA)
    with between(servers, place, control_dir, ca, person, connection="openssh", b_allow_programs=False) as pair:
        assert probe(pair.job).route is Route.RELAY


def test_the_certificate_of_a_push_runs_nothing_else(
    servers: list[PrivateSshd], place: Path, control_dir: Path, ca: BuiltinCa, person: Person, tmp_path: Path
) -> None:
    with between(servers, place, control_dir, ca, person, connection="openssh") as pair:
        found = probe(pair.job)
        to = push_target(pair.machines["b"], found.part, source=pair.machines["a"], login=pair.job.target.storage.login)
    key = tmp_path / "key"
    key.touch(mode=0o600)
    key.write_bytes(to.key)
    Path(f"{key}-cert.pub").write_text(f"{to.certificate}\n")
    argv = ["ssh", "-F", "none", "-T", "-o", f"UserKnownHostsFile={servers[1].known_hosts}", "-o", "IdentitiesOnly=yes"]
    argv += ["-i", os.fspath(key), "-p", str(servers[1].port), f"{person.principal}@{servers[1].host}"]
    for words in (["cat", "/etc/passwd"], ["-s", "sftp"], []):
        ran = subprocess.run([*argv, *words], input=b"x", capture_output=True, timeout=TIMEOUT, check=False)
        assert (ran.stdout.replace(b"\ndm-start\n", b""), b"Permission denied" in ran.stderr) == (b"", False)
    assert Path(found.part).read_bytes() == b"x"
    assert replace(to, key=b"").key == b""
    assert "PRIVATE" not in repr(to)
