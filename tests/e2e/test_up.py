"""`dm up` as a real process tree: from an empty home to ready, through deaths of its children, to a clean end."""

from __future__ import annotations

import fcntl
import getpass
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest
import requests

from datamanager.client import AccessClient
from datamanager.errors import DataManagerError, NotAuthenticated
from models.access.visibility import ALL
from models.database import Database
from models.machines.base_dirs import check_base_dirs
from models.migrate import upgrade
from models.transfers.lookup import get_transfer
from tests.support.catalogue import an_object, machines
from tests.support.ports import free_port
from tests.support.process import Process, clean_environment, session_members, signal_each
from tests.support.service import DataManagerService
from tests.support.site import PATIENCE, eventually
from tests.support.web import OddServer, endless

ROOT = Path(__file__).parents[2]
in_order = pytest.mark.xdist_group("up")
"""Tests of one process tree, in their order."""


def told(service: DataManagerService) -> str:
    """Return what `dm up` has printed."""
    return service.supervisor.tail(100_000)


def child(service: DataManagerService, name: str) -> int | None:
    """Return the pid of the mover, the API or the Prefect server."""
    words = {"mover": ("dm mover",), "api": ("deployments.api",), "prefect": ("deployments.orchestrator.server",)}[name]
    found = service.supervisor.members(*words)
    return found[0] if len(found) == 1 else None


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DataManagerService]:
    """A Data Manager that was started in an empty home, with ports given, and an address to download from."""
    service = DataManagerService(tmp_path_factory.mktemp("up") / "home", {"DM_DOWNLOAD_ALLOW": "127.0.0.1"}, tree=True)
    with service:
        yield service


@in_order
def test_it_becomes_ready_and_says_where_everything_is(service: DataManagerService) -> None:
    eventually(lambda: "self-check" in told(service), "the self-check has run")
    text = told(service)
    assert f"{service.url}/docs" in text
    assert f"http://127.0.0.1:{service.env['DM_PREFECT_PORT']}" in text
    assert str(service.home / "logs") in text
    assert len([line for line in text.splitlines() if not line.startswith("not ready after")]) < 12


@in_order
def test_the_self_check_ran_through_its_own_api_and_left_nothing(service: DataManagerService) -> None:
    eventually(lambda: "/runs/flow-run/" in told(service), "the link is printed")
    said = told(service)
    prefect = f"http://127.0.0.1:{service.env['DM_PREFECT_PORT']}"
    # the link has a line of its own: in a narrow terminal it would be broken otherwise
    wanted = rf"^self-check passed: .* in \d+\.\d\d s, see\n  {prefect}/runs/flow-run/[0-9a-f-]{{36}}$"
    assert re.search(wanted, said, re.MULTILINE), said
    with service.client() as client:
        objects = list(client.objects())
    assert [one.status for one in objects] == ["DELETED", "DELETED"]
    assert not (service.home / "data" / ".dm-selfcheck").exists()


@in_order
@pytest.mark.attack(cwe=276, title="Another user of the host reads the service's files")
def test_the_home_is_private_and_has_a_machines_file(service: DataManagerService) -> None:
    assert service.home.stat().st_mode & 0o777 == 0o700
    ours = [
        file
        for file in service.home.rglob("*")
        if file.is_file() and "data" not in file.parts and file.name != "up.log"
    ]
    assert {"catalogue.db", "api.log", "mover.log", "prefect.db", "secrets.key", "machines.toml"} <= {
        file.name for file in ours
    }
    assert [str(file) for file in ours if file.stat().st_mode & 0o077] == []
    assert "[machines.localhost]" in (service.home / "machines.toml").read_text()
    with service.client() as client:
        assert [(one.name, one.reachable) for one in client.machines()] == [("localhost", True)]


@in_order
def test_the_home_has_the_first_token_for_its_owner_alone(service: DataManagerService) -> None:
    file = service.home / "admin-token"
    assert file.stat().st_mode & 0o777 == 0o600
    assert str(file) in told(service)
    with service.client_of(AccessClient) as client:
        assert client.whoami().roles == ["admin"]
        (token,) = client.tokens()
    assert token.id == file.read_text()[3:15]
    assert token.name == f"{getpass.getuser()}@{socket.gethostname()}:{service.home}"
    with AccessClient(service.url) as client, pytest.raises(NotAuthenticated):
        client.whoami()


@in_order
def test_prefect_server_of_the_tree_refuses_foreign_pages(service: DataManagerService) -> None:
    url = f"http://127.0.0.1:{service.env['DM_PREFECT_PORT']}/api/health"
    answers = {
        name: requests.get(url, headers={name: value}, timeout=PATIENCE)
        for name, value in {"Accept": "*/*", "Host": "evil.example", "Origin": "http://evil.example"}.items()
    }
    assert {name: answer.status_code for name, answer in answers.items()} == {"Accept": 200, "Host": 403, "Origin": 403}
    assert all(answer.headers.get("access-control-allow-origin") != "*" for answer in answers.values())


@in_order
def test_all_children_are_in_its_session_and_the_mover_has_its_name(service: DataManagerService) -> None:
    assert all(child(service, name) for name in ("mover", "api", "prefect"))
    group = os.getpgid(service.supervisor.pid)
    eventually(lambda: len(service.supervisor.members()) == 4, "supervisor, Prefect, API and mover are all")
    assert {os.getpgid(pid) for pid in service.supervisor.members()} == {group}


@in_order
@pytest.mark.faults
@pytest.mark.parametrize("name", ["mover", "api", "prefect"])
def test_a_child_that_dies_is_started_again(service: DataManagerService, name: str) -> None:
    old = child(service, name)
    assert old is not None
    others = {other: child(service, other) for other in {"mover", "api", "prefect"} - {name}}
    os.kill(old, signal.SIGKILL)
    eventually(lambda: child(service, name) not in (None, old), f"{name} is started again")
    log = service.home / "logs" / f"{name}.log"
    assert f"{name} ended (killed by SIGKILL); restarting in 0.5 s; log: {log}" in told(service)
    eventually(lambda: _works(service), f"it works again after the death of {name}")
    assert {other: child(service, other) for other in others} == others


def _works(service: DataManagerService) -> bool:
    """Say whether a copy goes through."""
    folder = service.home / "data" / "again"
    folder.mkdir(exist_ok=True)
    name = f"{time.monotonic_ns()}"
    (folder / name).write_bytes(b"bytes")
    with service.client() as client:
        try:
            client.health()
            copied = client.copy(client.register("localhost", name, "again"), "localhost", f"again/{name}.copy")
        except DataManagerError:
            return False  # a part is away still
        return client.info(copied).size == 5


@in_order
@pytest.mark.faults
def test_children_end_with_a_supervisor_that_is_killed(service: DataManagerService) -> None:
    session = service.supervisor.pid
    assert len(session_members(session)) >= 4
    os.kill(session, signal.SIGKILL)
    eventually(lambda: not session_members(session), "the children end with their supervisor")
    service.supervisor.kill()


@in_order
@pytest.mark.faults
def test_it_starts_again_in_its_home_and_ctrl_c_stops_everything(service: DataManagerService) -> None:
    checks, token = told(service).count("self-check passed"), service.token
    service.start()
    assert service.token == token
    eventually(lambda: told(service).count("self-check passed") == checks + 1, "the second self-check has run")
    with OddServer() as source:
        task = _endless_download(service, source.on("/endless", endless()))
        signal_each(service.supervisor.members(), signal.SIGINT)
        eventually(lambda: "under way" in told(service), "it says what it waits for")
        assert service.interrupt() == 0  # fails when it has not ended in time, or a process of the session is left
    stopping = told(service).partition("stopping …")[2]
    assert stopping.startswith(" (Ctrl-C again: now)\n  1 transfer is under way, and returned to the queue in 10 s\n")
    assert stopping.endswith("\nstopped\n")
    database = Database(f"sqlite+pysqlite:///{service.home / 'catalogue.db'}")
    with database.read() as session:
        row = get_transfer(session, task, ALL)
        assert (row.status, row.owner) == ("QUEUED", None)
    database.close()


def _endless_download(service: DataManagerService, url: str) -> UUID:
    """Begin a download that never ends by itself; return its task when bytes move."""
    with service.client() as client:
        fields = {"machine": "localhost", "filename": "endless", "url": url, "bandwidth": "1000"}
        task = client.start_getexternal(**fields)
        eventually(lambda: client.status(task).status == "RUNNING", "it is under way")
    return task


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_supervisor_that_is_told_to_stop_stops_its_children(tmp_path: Path, number: signal.Signals) -> None:
    """With a child of any kind: what `dm up` supervises makes no difference to it."""
    script = (
        "import sys; from deployments.local.supervisor import Child, Supervisor\n"
        "supervisor = Supervisor(print); supervisor.start(Child('child', ['sleep', '1000'], {}))\n"
        "print('runs', flush=True); supervisor.run(lambda: 60.0); supervisor.stop(); print('stopped')"
    )
    log = tmp_path / "log"
    with Process([sys.executable, "-c", script], log=log, env=clean_environment(), cwd=ROOT) as process:
        eventually(lambda: "runs" in log.read_text(), "it runs")
        session = process.pid
        assert len(session_members(session)) == 2
        os.kill(session, number)
        eventually(lambda: not session_members(session), "no process is left")
        assert process.returncode == 0
        assert log.read_text() == "runs\nstopped\n"


def test_supervisor_ends_now_after_a_second_signal(tmp_path: Path) -> None:
    script = (
        "from deployments.local.supervisor import Child, Supervisor\n"
        "deaf = ['sh', '-c', 'trap \"\" TERM; echo deaf; while :; do sleep 1; done']\n"
        "supervisor = Supervisor(lambda line: print(line, flush=True))\n"
        "supervisor.start(Child('child', deaf, {'PATH': '/usr/bin:/bin'}, grace=100_000))\n"
        "supervisor.run(lambda: 60.0); supervisor.stop(); print('stopped')"
    )
    log = tmp_path / "log"
    with Process([sys.executable, "-c", script], log=log, env=clean_environment(), cwd=ROOT) as process:
        eventually(lambda: "deaf" in log.read_text(), "it runs")
        session = process.pid
        os.kill(session, signal.SIGINT)
        eventually(lambda: "waiting for child to end, 99" in log.read_text(), "it says what it waits for")
        os.kill(session, signal.SIGINT)
        eventually(lambda: not session_members(session), "no process is left")
        assert log.read_text().endswith("child did not stop in time; killing it\nstopped\n")


def test_supervisor_interrupts_what_does_not_look_for_signals(tmp_path: Path) -> None:
    script = (
        "import time; from deployments.local.supervisor import Supervisor\n"
        "supervisor = Supervisor(print)\n"
        "try:\n"
        "    with supervisor.interruptible(): print('waits', flush=True); time.sleep(100_000)\n"
        "except KeyboardInterrupt: print('interrupted')"
    )
    log = tmp_path / "log"
    with Process([sys.executable, "-c", script], log=log, env=clean_environment(), cwd=ROOT) as process:
        eventually(lambda: "waits" in log.read_text(), "it waits")
        os.kill(process.pid, signal.SIGINT)
        eventually(lambda: not process.running, "it ended")
        assert log.read_text() == "waits\ninterrupted\n"


def up(home: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run `dm up` where it must refuse to start."""
    settings = {"DM_HOME": str(home), "DM_PORT": str(free_port()), "DM_PREFECT_PORT": str(free_port()), **env}
    return subprocess.run(
        [sys.executable, "-m", "deployments.local.up"],
        env=clean_environment(**settings),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def refused(done: subprocess.CompletedProcess[str], *named: str) -> None:
    """Assert that it said one line and ended with exit code 2."""
    assert done.returncode == 2, done
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stdout == ""
    for name in named:
        assert name in done.stderr


def test_an_unknown_setting_stops_the_start(tmp_path: Path) -> None:
    refused(up(tmp_path / "home", DM_PROT="1"), "DM_PROT")
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[machines.a]\ntransport = 'sftp'\nbase_dir = '/x'\n", "machines.a.host"),
        ("[machines.a]\ntransport = 'local'\nbase_dir = '/x'\ncolour = 'red'\n", "machines.a.colour"),
        ("[machines.a\n", "machines.toml"),
        ("", "no machine"),
    ],
)
def test_a_wrong_machines_file_stops_the_start(tmp_path: Path, text: str, named: str) -> None:
    file = tmp_path / "machines.toml"
    file.write_text(text)
    refused(up(tmp_path / "home", DM_MACHINES=str(file)), str(file), named)


def test_a_machines_file_that_was_named_is_not_made(tmp_path: Path) -> None:
    refused(up(tmp_path / "home", DM_MACHINES=str(tmp_path / "none.toml")), "none.toml")
    assert not (tmp_path / "none.toml").exists()


@pytest.mark.parametrize("setting", ["DM_PORT", "DM_PREFECT_PORT"])
def test_a_port_that_is_taken_stops_the_start(tmp_path: Path, setting: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        refused(up(tmp_path / "home", **{setting: port}), setting, port)


def test_one_home_has_one_dm_up(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    handle = os.open(home, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        refused(up(home), "DM_HOME", str(home))
    finally:
        os.close(handle)


def test_a_changed_base_dir_stops_the_start_and_nothing_is_left(tmp_path: Path) -> None:
    home, file = tmp_path / "home", tmp_path / "machines.toml"
    home.mkdir()
    database = Database(f"sqlite+pysqlite:///{home / 'catalogue.db'}")
    upgrade(database)
    an_object(database)  # on `here`
    with database.write() as session:
        check_base_dirs(session, machines(), confirmed=False)
    database.close()
    file.write_text("[machines.here]\ntransport = 'local'\nbase_dir = '/somewhere/else'\n")
    refused(up(home, DM_MACHINES=str(file)), "machines.here.base_dir", "DM_CONFIRM_BASE_DIR")
