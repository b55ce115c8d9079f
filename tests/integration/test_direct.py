"""Direct transfers between two real SSH servers: the source pushes, we watch, and the relay is always left to go on."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from datamanager.domain.states import TransferKind, Verified
from datamanager.engine.attempt import Attempt, Found, Intent
from datamanager.engine.control import Control
from datamanager.engine.single import publish as publishing
from datamanager.engine.single import transfer
from datamanager.engine.single.probe import probe
from datamanager.engine.single.verify import verify
from datamanager.errors import Cancelled, DestinationExists, SourceChanged
from tests.support.ends import Ends
from tests.support.process import Process, command_line, signal_each
from tests.support.sshd import PrivateSshd

pytestmark = pytest.mark.server

DATA = os.urandom(5 * 2**20 + 7)
LARGE = 1 << 30
"""Bytes of a sparse file that takes long enough to be stopped in the middle."""
TIMEOUT = 60.0
NAMES = ["quo'te\"s", "$(id)", "`id`;&", "new\nline", "-dash", " blanks ", "back\\slash", "ünï", "x" * 200]


def source_machine(directory: Path, ssh_config: str) -> PrivateSshd:
    """Return a server whose logins find an `ssh` with a configuration of the machine's own."""
    programs = directory / "bin"
    programs.mkdir(parents=True)
    config = directory / "ssh_config"
    config.write_text(ssh_config)
    ssh = programs / "ssh"
    ssh.write_text(f'#!/bin/sh\nexec "{shutil.which("ssh")}" -F "{config}" "$@"\n')
    ssh.chmod(0o755)
    return PrivateSshd(directory, path=f"{programs}:{os.environ['PATH']}")


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[PrivateSshd, PrivateSshd]]:
    """A source with a key for the destination, which is the second server."""
    directory = tmp_path_factory.mktemp("direct")
    with PrivateSshd(directory / "b") as second:
        config = f"IdentityFile {second.client_key}\nIdentitiesOnly yes\n"
        with source_machine(directory / "a", config) as first:
            yield first, second


@pytest.fixture(params=["openssh", "paramiko"])
def ends(request: pytest.FixtureRequest, servers: tuple[PrivateSshd, PrivateSshd], tmp_path: Path) -> Iterator[Ends]:
    """Two machines, `a` and `b`; `c` is the second server too, and its folder is that of `a`."""
    with between(servers[0], servers[1], tmp_path, connection=request.param) as both:
        yield both
    assert not programs_left(*servers)


@pytest.fixture
def pair(servers: tuple[PrivateSshd, PrivateSshd], tmp_path: Path) -> Iterator[Ends]:
    """The same over one kind of connection, for what does not depend on it."""
    with between(servers[0], servers[1], tmp_path, connection="paramiko") as both:
        yield both


@contextlib.contextmanager
def between(first: PrivateSshd, second: PrivateSshd, directory: Path, **keys: object) -> Iterator[Ends]:
    """Make the two machines, which allow direct transfers."""
    folders = {name: directory / name for name in ("a", "b")}
    for folder in folders.values():
        folder.mkdir()
    machines = {
        "a": first.machine("a", folders["a"], direct=True, **keys),
        "b": second.machine("b", folders["b"], direct=True, connection=keys["connection"]),
        "c": second.machine("c", folders["a"], direct=True, connection=keys["connection"]),
    }
    with tempfile.TemporaryDirectory(prefix="dm-") as control_dir:  # a socket's path must be short
        both = Ends(machines, Path(control_dir))
        try:
            yield both
        finally:
            both.storages.close()


def programs_left(*servers: PrivateSshd) -> list[str]:
    """Return the command lines of what a push starts, as far as it still runs after a while."""
    deadline = time.monotonic() + TIMEOUT
    while True:
        lines = [command_line(pid) for server in servers for pid in server.descendants()]
        left = [line for line in lines if line.split(" ")[0] in ("cat", "tail", "ssh", "/usr/bin/ssh", "sh", "dd")]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.05)


def serving(server: PrivateSshd, program: str) -> list[int]:
    """Return the pids below the server that run a program."""
    return [pid for pid in server.descendants() if command_line(pid).split(" ")[0] == program]


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def carry(job: Attempt) -> Found:
    """Do what the flow does, on the direct way only."""
    control = Control()
    found = probe(job)
    moved = transfer.push(job, found, control)
    assert moved is not None
    assert control.bytes_done == moved.size
    proof = verify(job, found, moved, control)
    assert proof.verified is Verified.SHA256
    intent = Intent(proof.size, proof.sha256, found.source_stat.mtime)
    publishing.publish(job, found, publishing.set_attributes(job, found, intent))
    return found


def in_the_middle(act: Callable[[], object], job: Attempt, found: Found) -> threading.Thread:
    """Start a thread that acts once a MiB has arrived at the destination."""

    def wait_and_act() -> None:
        deadline = time.monotonic() + TIMEOUT
        part = Path(found.part)
        while time.monotonic() < deadline and not (part.exists() and part.stat().st_size > 2**20):
            time.sleep(0.005)
        act()

    thread = threading.Thread(target=wait_and_act)
    thread.start()
    return thread


def sparse(ends: Ends, name: str = "large") -> Path:
    """Make a file of `LARGE` bytes on `a` that fills no disk."""
    path = ends.folder("a") / name
    with path.open("wb") as file:
        file.write(DATA)
        file.truncate(LARGE)
    return path


def is_prefix(part: Path, source: Path) -> bool:
    """Say whether what is there are the source's first bytes."""
    size = part.stat().st_size
    return size <= source.stat().st_size and not subprocess.call(["cmp", "-s", "-n", str(size), part, source])


def test_exact_bytes_mode_and_time(ends: Ends) -> None:
    source = ends.folder("a") / "in"
    source.write_bytes(DATA)
    source.chmod(0o640)
    os.utime(source, (1_600_000_000, 1_600_000_000))
    out = Path(carry(ends.job("a:in", "b:new/dir/out")).final)
    assert out == ends.folder("b") / "new" / "dir" / "out"
    assert out.read_bytes() == DATA
    assert (out.stat().st_mode & 0o7777, int(out.stat().st_mtime)) == (0o640, 1_600_000_000)
    assert os.listdir(out.parent) == ["out"]


def test_names_are_never_interpreted(ends: Ends) -> None:
    expected = {}
    for number, name in enumerate(NAMES):
        (ends.folder("a") / name).write_bytes(DATA[number:1000])
        job = ends.job(f"a:{name}", f"b:{name}")
        found = probe(job)
        assert transfer.push(job, found, Control()) is not None
        expected[job.part_name] = DATA[number:1000]
    folder = ends.folder("b")
    assert {name: (folder / name).read_bytes() for name in os.listdir(folder)} == expected


def test_an_empty_file(pair: Ends) -> None:
    (pair.folder("a") / "empty").touch()
    assert Path(carry(pair.job("a:empty", "b:empty")).final).read_bytes() == b""


def test_it_goes_on_at_an_offset(ends: Ends) -> None:
    (ends.folder("a") / "in").write_bytes(DATA)
    job, control = ends.job("a:in", "b:out"), Control()
    found = probe(job)
    part = Path(found.part)
    # more is there than is believed, and not all of it is right
    offset = 2**20 + 1
    part.write_bytes(DATA[:offset] + bytes(1000))
    inode = part.stat().st_ino
    moved = transfer.push(job, found, control, offset)
    assert moved is not None
    assert moved.size == control.bytes_done == len(DATA)
    assert part.stat().st_ino == inode
    assert part.read_bytes() == DATA


def test_it_goes_on_with_an_existing_file_only(pair: Ends) -> None:
    (pair.folder("a") / "in").write_bytes(DATA)
    job = pair.job("a:in", "b:out")
    found = probe(job)
    assert transfer.push(job, found, Control(), 1000) is None
    assert not Path(found.part).exists()
    elsewhere = pair.folder("b") / "elsewhere"
    elsewhere.write_bytes(b"x" * 1000)
    Path(found.part).symlink_to(elsewhere)
    assert transfer.push(job, found, Control(), 1000) is None
    assert elsewhere.read_bytes() == b"x" * 1000


def test_an_existing_partial_file_is_left_alone(pair: Ends, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    (pair.folder("a") / "in").write_bytes(DATA)
    job = pair.job("a:in", "b:out")
    found = probe(job)
    Path(found.part).write_bytes(b"somebody's")
    assert transfer.push(job, found, Control()) is None
    assert Path(found.part).read_bytes() == b"somebody's"
    assert "could not be pushed" in caplog.text


def test_a_link_is_not_written_through(pair: Ends) -> None:
    (pair.folder("a") / "in").write_bytes(DATA)
    job = pair.job("a:in", "b:out")
    found = probe(job)
    elsewhere = pair.folder("b") / "elsewhere"
    Path(found.part).symlink_to(elsewhere)
    assert transfer.push(job, found, Control()) is None
    assert not elsewhere.exists()


def test_a_taken_destination_is_refused(pair: Ends) -> None:
    (pair.folder("a") / "in").write_bytes(DATA)
    (pair.folder("b") / "out").write_bytes(b"old")
    with pytest.raises(DestinationExists):
        probe(pair.job("a:in", "b:out"))


@pytest.mark.parametrize("kind", [TransferKind.MOVE, TransferKind.COPY])
def test_two_names_of_one_directory_never_destroy_the_file(pair: Ends, kind: TransferKind) -> None:
    file = pair.folder("a") / "in"
    file.write_bytes(DATA)
    job = pair.job("a:in", "c:in", kind, overwrite=True)
    found = probe(job)
    with pytest.raises(DestinationExists, match="the same file"):
        transfer.push(job, found, Control())
    transfer.discard(job, found)
    assert os.listdir(pair.folder("a")) == ["in"]
    assert file.read_bytes() == DATA


def test_a_source_that_grew_is_not_passed_on(pair: Ends) -> None:
    source = pair.folder("a") / "in"
    source.write_bytes(DATA)
    job = pair.job("a:in", "b:out")
    found = probe(job)
    source.write_bytes(DATA + b"more")
    with pytest.raises(SourceChanged):
        transfer.push(job, found, Control())


def test_a_source_that_is_gone_is_for_the_relay_to_tell(pair: Ends) -> None:
    source = pair.folder("a") / "in"
    source.write_bytes(DATA)
    job = pair.job("a:in", "b:out")
    found = probe(job)
    source.unlink()
    assert transfer.push(job, found, Control()) is None


def test_a_stop_ends_all_programs(ends: Ends, servers: tuple[PrivateSshd, PrivateSshd]) -> None:
    sparse(ends)
    job, control = ends.job("a:large", "b:out"), Control()
    found = probe(job)
    thread = in_the_middle(lambda: control.stop(Cancelled("enough")), job, found)
    with pytest.raises(Cancelled):
        transfer.push(job, found, control)
    thread.join()
    assert not programs_left(*servers)
    assert Path(found.part).stat().st_size < LARGE  # they were ended, they did not just finish
    transfer.discard(job, found)
    assert os.listdir(ends.folder("b")) == []
    with ends.storages.get("a").session() as session:  # the connection is as good as before
        assert session.stat(found.source_path).size == LARGE


@pytest.mark.parametrize("offset", [0, 1000])
def test_a_cut_connection_leaves_a_prefix_and_the_relay_goes_on(
    ends: Ends, servers: tuple[PrivateSshd, PrivateSshd], offset: int
) -> None:
    source = sparse(ends)
    job = ends.job("a:large", "b:out")
    found = probe(job)
    if offset:
        Path(found.part).write_bytes(DATA[:offset])

    def cut() -> None:
        sessions = [parent_of(pid) for pid in serving(servers[1], "cat")]
        signal_each(sessions, signal.SIGKILL)  # of the server; the program sees the end of its input
        signal_each(serving(servers[0], str(shutil.which("ssh"))), signal.SIGKILL)

    thread = in_the_middle(cut, job, found)
    assert transfer.push(job, found, Control(), offset) is None
    thread.join()
    assert not programs_left(*servers)
    assert is_prefix(Path(found.part), source)
    assert Path(found.part).stat().st_size < LARGE


def test_a_stall_is_given_up(servers: tuple[PrivateSshd, PrivateSshd], tmp_path: Path) -> None:
    first, second = servers
    with between(first, second, tmp_path, connection="openssh") as ends:
        ends.machines["b"] = ends.machines["b"].model_copy(update={"stall_timeout": 3.0})
        sparse(ends)
        job = ends.job("a:large", "b:out")
        found = probe(job)
        stopped: list[int] = []

        def stall() -> None:
            stopped.extend(serving(second, "cat"))
            signal_each(stopped, signal.SIGSTOP)

        thread = in_the_middle(stall, job, found)
        assert transfer.push(job, found, Control()) is None
        thread.join()
        signal_each(stopped, signal.SIGCONT)
        assert not programs_left(*servers)
        assert Path(found.part).stat().st_size < LARGE


def test_programs_end_when_the_mover_dies(servers: tuple[PrivateSshd, PrivateSshd], tmp_path: Path) -> None:
    first, second = servers
    with between(first, second, tmp_path, connection="openssh") as ends:
        sparse(ends)
        job, control = ends.job("a:large", "b:out"), Control()
        found = probe(job)

        def cut() -> None:
            signal_each(first.children(), signal.SIGKILL)  # our own connections to the source, as if we were gone
            control.stop(Cancelled("enough"))

        thread = in_the_middle(cut, job, found)
        with contextlib.suppress(Cancelled):
            assert transfer.push(job, found, control) is None
        thread.join()
        assert not programs_left(*servers)
        assert Path(found.part).stat().st_size < LARGE


@pytest.mark.parametrize("connection", ["openssh", "paramiko"])
def test_another_host_key_is_refused_though_the_source_would_take_it(
    servers: tuple[PrivateSshd, PrivateSshd], tmp_path: Path, connection: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    first, second = servers
    with between(first, second, tmp_path, connection=connection) as ends:
        (ends.folder("a") / "in").write_bytes(DATA)
        found = probe(ends.job("a:in", "b:out"))
        # what other machines reach under that name is not what we reach
        impostor = PrivateSshd(tmp_path / "impostor", port=second.port)
        impostor.host = "127.0.0.2"
        with impostor:
            shutil.copyfile(second.directory / "authorized_keys", impostor.directory / "authorized_keys")
            ends.machines["b"] = ends.machines["b"].model_copy(update={"direct_host": impostor.host})
            assert transfer.push(ends.job("a:in", "b:out"), found, Control()) is None
        assert "Host key verification failed" in caplog.text
        assert os.listdir(ends.folder("b")) == []


def test_nothing_is_pushed_to_a_machine_whose_key_we_do_not_know_ourselves(
    servers: tuple[PrivateSshd, PrivateSshd], tmp_path: Path
) -> None:
    with between(*servers, tmp_path, connection="openssh") as ends:
        (ends.folder("a") / "in").write_bytes(DATA)
        found = probe(ends.job("a:in", "b:out"))
        unknown = tmp_path / "known_hosts"
        unknown.write_text(f"@revoked {servers[1].known_host_line()}")
        ends.machines["b"] = ends.machines["b"].model_copy(update={"known_hosts": unknown})
        assert transfer.push(ends.job("a:in", "b:out"), found, Control()) is None
        assert os.listdir(ends.folder("b")) == []


@pytest.fixture
def agent(servers: tuple[PrivateSshd, PrivateSshd], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An SSH agent with the key for the destination; only this process knows it."""
    sock = tmp_path / "agent"
    with Process(["ssh-agent", "-D", "-a", str(sock)], log=tmp_path / "agent.log") as process:
        process.wait_until(sock.is_socket, TIMEOUT)
        monkeypatch.setenv("SSH_AUTH_SOCK", str(sock))
        subprocess.run(["ssh-add", "-q", servers[1].client_key], check=True)
        yield sock


@pytest.mark.parametrize("connection", ["openssh", "paramiko"])
@pytest.mark.parametrize("forward_agent", [True, False])
def test_our_agent_is_lent_when_the_machine_may_use_it(
    servers: tuple[PrivateSshd, PrivateSshd],
    tmp_path: Path,
    agent: Path,
    connection: str,
    forward_agent: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    with (
        source_machine(tmp_path / "keyless", "IdentityFile none\n") as keyless,
        between(keyless, servers[1], tmp_path, connection=connection, forward_agent=forward_agent) as ends,
    ):
        (ends.folder("a") / "in").write_bytes(DATA)
        job = ends.job("a:in", "b:out")
        found = probe(job)
        moved = transfer.push(job, found, Control())
        if forward_agent:
            assert moved is not None
            assert Path(found.part).read_bytes() == DATA
        else:
            assert moved is None
            assert "Permission denied" in caplog.text
            assert os.listdir(ends.folder("b")) == []


@pytest.mark.parametrize(
    ("keys", "limited", "possible"),
    [
        ({}, False, True),
        ({}, True, False),
        ({"a": {"direct": False}}, False, False),
        ({"b": {"direct": False}}, False, False),
        ({"a": {"transport": "local", "host": None}}, False, False),
    ],
)
def test_when_it_is_possible(
    servers: tuple[PrivateSshd, PrivateSshd],
    tmp_path: Path,
    keys: dict[str, dict[str, object]],
    limited: bool,
    possible: bool,
) -> None:
    with between(*servers, tmp_path, connection="openssh") as ends:
        for name, values in keys.items():
            ends.machines[name] = ends.machines[name].model_copy(update=values)
        job = ends.job("a:in", "b:out")
        assert transfer.can_go_direct(replace(job, limited=limited)) is possible
        assert not transfer.can_go_direct(ends.job("b:in", "b:out"))
