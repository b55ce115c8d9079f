"""Machines with every login shell, whose login scripts print: programs get names as names, and say what they say."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from api.machines.probe import Prober
from api.machines.views import machine_view
from datamanager.domain.limits import Limits
from datamanager.errors import Cancelled, LoginOutput
from datamanager.machines import Machines
from datamanager.transports.factory import Storages, open_storage
from datamanager.transports.login_shell import START, command_line
from datamanager.transports.port import Session
from datamanager.transports.remote.third_party_push import push_target
from datamanager.transports.values import NewFile, no_progress
from models.machines.health import WELL
from tests.contract.conftest import commands, until
from tests.support.command import run
from tests.support.login_shells import SCRIPTS, SHELLS, LoginShells
from tests.support.odd_http import OddServer, ok
from tests.support.programs import find_program
from tests.support.remote_machine import Machine as Fetching

HOSTILE = [
    b"a\\'\";touch PWNED;#.nc",
    b"-\\\\!!%s%n{a,b}~\t`touch PWNED`\n$(touch PWNED)|touch PWNED&\xff\xfe\x81'",
]
"""For programs that take one name: these have it all."""
NAMES = [
    *HOSTILE,
    *(b"two\\\\.nc", b"three\\\\\\", b"bang!ls", b"!!", b"new\nline", b"$(touch PWNED)", b"`touch PWNED`", b"$HOME"),
    *(b"-rf", b"--help", b"%s%n", b"%self", b"tab\t", b" blanks ", b"not\xff\xfeutf-8", b"~", b"~root", b"{a,b}"),
    *(b"=ls", b"^a^b", b"*?[a-z]", b";touch PWNED", b"\ntouch PWNED\n", b"'; touch PWNED; '", b'"', b"#", b"@", b"(x)"),
]
# what ours would say, and no end of the line before it
LIE = "dm-pid 1; dm-ready; " + "0" * 64
PRINTS = dict.fromkeys(SCRIPTS, f"echo 'dm-pid 1'; echo 'dm-has cp'; printf '{LIE}'")
PAIRS = [
    *((shell, "paramiko") for shell in SHELLS),
    *((shell, "openssh") for shell in ("bash", "fish", "tcsh")),  # the same line, by the other client
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoginShells]:
    """A server whose login scripts print before every program, but not before SFTP."""
    with LoginShells(tmp_path_factory.mktemp("shells"), prints=PRINTS) as running:
        yield running


@pytest.fixture(scope="module")
def printing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoginShells]:
    """A server whose login scripts print before SFTP too."""
    prints = {shell: f"echo; echo 'hello from {shell}'; echo more" for shell in PRINTS}
    with LoginShells(tmp_path_factory.mktemp("printing"), prints=prints, by_shell=True) as running:
        yield running


def named(folder: Path, name: bytes) -> str:
    return os.path.join(str(folder), os.fsdecode(name))


def content(folder: str | Path) -> dict[bytes, bytes]:
    """Return the bytes of each file in a folder, by its name."""
    return {entry.name: Path(os.fsdecode(entry.path)).read_bytes() for entry in os.scandir(os.fsencode(folder))}


@pytest.mark.parametrize("posix", ["bash", "dash", "zsh"])
@pytest.mark.parametrize("shell", SHELLS)
def test_a_command_line_is_read_alike(shell: str, posix: str, tmp_path: Path) -> None:
    """As sshd calls it, whichever shell is the machine's `sh`."""
    (tmp_path / "sh").symlink_to(find_program(posix))
    env = {"HOME": str(tmp_path), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    for argv in (["printf", "%s\\0"], ["sh", "-c", 'printf "%s\\0" "$@"', "sh"]):
        line = command_line([*argv, *map(os.fsdecode, NAMES)])
        ran = subprocess.run([find_program(shell), "-c", line], cwd=tmp_path, env=env, capture_output=True)
        assert ran.stdout.split(b"\0") == [START + NAMES[0], *NAMES[1:], b""]
    assert not list(tmp_path.rglob("PWNED"))


@pytest.mark.attack(cwe=78, title="Names are commands of the shell")
@pytest.mark.server
@pytest.mark.parametrize(("shell", "connection"), PAIRS)
def test_names_are_names_on_every_route(server: LoginShells, tmp_path: Path, shell: str, connection: str) -> None:
    machine = server.machine("m", tmp_path, shell=shell, connection=connection, direct=True)
    storage = open_storage(machine, control_dir=server.directory / "run")
    try:
        with storage.session() as session:
            _many(session, tmp_path)
            for number, name in enumerate(HOSTILE):
                folder = tmp_path / str(number)
                folder.mkdir()
                _single(session, folder, name)
                for offset in (0, 9):
                    data = os.urandom(1000)
                    Path(named(folder, name)).write_bytes(data)
                    there = named(folder, name[:-1] + b"%d" % offset)
                    if offset:
                        Path(there).write_bytes(data[:offset])
                    session.programs.push(
                        named(folder, name), push_target(machine, there, offset, source=machine), no_progress
                    )
                    assert Path(there).read_bytes() == data
    finally:
        storage.close()
    assert not [*tmp_path.rglob("PWNED*"), *server.directory.rglob("PWNED*")]


def _many(session: Session, folder: Path) -> None:
    """A tar stream into a folder of such a name, and the digests by xargs."""
    below = named(folder, HOSTILE[0])
    os.mkdir(below)
    files = [NewFile(f"{below}/{os.fsdecode(name)}", os.urandom(100), 0o600, 1_000_000_000) for name in NAMES]
    session.bulk.unpack(files, below)
    assert content(below) == {name: file.data for name, file in zip(NAMES, files, strict=True)}
    found = dict(session.bulk.digest([file.path for file in files], 0))  # nothing is read back
    assert found == {index: hashlib.sha256(file.data).hexdigest() for index, file in enumerate(files)}
    with session.bulk.syncing() as sync:
        sync([below])


def _single(session: Session, folder: Path, name: bytes) -> None:
    """A file that is followed while it is written, hashed, copied by cp, and given to a program of the site."""
    path, data = named(folder, name), os.urandom(100_000)
    with session.create(path) as writer, session.programs.follow(path) as follower:
        writer.write(0, data)
        writer.settle()
        follower.advance(len(data))
        assert follower.result(no_progress) == hashlib.sha256(data).hexdigest()
    assert session.programs.digest(path) == hashlib.sha256(data).hexdigest()
    session.programs.copy(path, named(folder, name[:-1]))
    assert session.programs.run(["touch", named(folder, name + b"+")]) == 0
    assert content(folder) == {name: data, name[:-1]: data, name + b"+": b""}


@pytest.mark.server
@pytest.mark.parametrize(("shell", "connection"), PAIRS)
def test_the_machine_fetches(server: LoginShells, tmp_path: Path, shell: str, connection: str) -> None:
    name = os.fsdecode(HOSTILE[0] + b"!x")
    made = Fetching(server, tmp_path, name, shell=shell, connection=connection)
    path = "/bang!ls/a?q=!!'x"
    try:
        with OddServer() as web:
            web.answers[path] = [ok(b"some bytes")]
            assert made.got(web.url(path)) == b"some bytes"
    finally:
        made.ends.storages.close()
    assert os.listdir(made.folder) == [name]
    assert not [*tmp_path.rglob("PWNED*"), *server.directory.rglob("PWNED*")]


@pytest.mark.server
@pytest.mark.parametrize("shell", SHELLS)
def test_a_program_is_ended(server: LoginShells, tmp_path: Path, shell: str) -> None:
    word = f"98765.{os.getpid()}{SHELLS.index(shell)}"

    def give_up(_: int) -> None:
        if commands(f"sleep {word}"):
            raise Cancelled("enough")

    machine = server.machine("m", tmp_path, shell=shell, connection="paramiko")
    storage = open_storage(machine, control_dir=server.directory / "run")
    try:
        with storage.session() as session, pytest.raises(Cancelled):
            session.programs.run(["sleep", word], give_up)
        assert until(lambda: not commands(f"sleep {word}"))
    finally:
        storage.close()


@pytest.mark.server
@pytest.mark.parametrize("connection", ["openssh", "paramiko"])
@pytest.mark.parametrize("shell", SCRIPTS)
def test_text_before_sftp_is_named(printing: LoginShells, tmp_path: Path, shell: str, connection: str) -> None:
    """The first line and what to change: in a transfer's error, and in the list of machines."""
    machine = printing.machine("m", tmp_path, shell=shell, connection=connection)
    storages = Storages(Machines({"m": machine}), printing.directory / "run")
    try:
        with pytest.raises(LoginOutput) as caught, storages.get("m").session():
            pass
        assert f"m: SFTP was expected, but text came first: 'hello from {shell}'. Let the" in caught.value.detail
        assert not caught.value.retryable
        found = asyncio.run(Prober(Machines({"m": machine}), storages).probe_all(patience=60.0))["m"]
    finally:
        storages.close()
    view = machine_view(machine, found, Limits(None, None), WELL)
    assert (view["reachable"], view["error"]) == (False, {"code": "login_output", "detail": caught.value.detail})


@pytest.mark.server
def test_machine_check_names_text_before_sftp(printing: LoginShells, tmp_path: Path) -> None:
    machine = printing.machine("m", tmp_path, shell="bash")
    given = machine.model_dump(mode="json", include={"transport", "host", "port", "username", "base_dir"})
    lines = [
        *(f"{key} = {json.dumps(value)}" for key, value in given.items()),
        f'identity_file = "{machine.identity_file}"',
    ]
    lines.append(f'known_hosts = "{machine.known_hosts}"')
    (tmp_path / "machines.toml").write_text("\n".join(["[machines.m]", *lines, ""]))
    env = {"DM_HOME": str(tmp_path / "home"), "DM_MACHINES": str(tmp_path / "machines.toml")}
    done = run("machine", "check", "m", env=env)
    assert done.returncode != 0
    assert "m: SFTP was expected, but text came first: 'hello from bash'. Let the login scripts" in done.stderr
