"""Walking a directory on a machine: every regular file below it and nothing else, whatever is there."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from datamanager.engine.inspection.directory_walk import DEPTH_MAX, Walk, tree_root
from datamanager.errors import InvalidRequest, PathMissing, PathNotAllowed, SourceMissing, TooLarge
from datamanager.machines import Machine
from datamanager.transports.factory import open_storage
from datamanager.transports.port import Session
from datamanager.transports.values import FileKind
from tests.support.sshd import PrivateSshd


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "base").mkdir()
    return tmp_path / "base"


@pytest.fixture(params=["local", "openssh", "paramiko"])
def machine(request: pytest.FixtureRequest, base: Path) -> Machine:
    if request.param == "local":
        return Machine.model_validate({"name": "here", "transport": "local", "base_dir": str(base)})
    servers: tuple[PrivateSshd, PrivateSshd] = request.getfixturevalue("sshd_pair")
    return servers[0].machine("remote", base, connection=request.param)


@pytest.fixture
def session(machine: Machine, tmp_path: Path) -> Iterator[Session]:
    storage = open_storage(machine, control_dir=tmp_path)
    with storage.session() as lent:
        yield lent
    storage.close()


def put(path: Path, size: int = 3) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)


def test_every_regular_file_is_found_and_nothing_else(session: Session, base: Path) -> None:
    files = {
        "a": 0,
        "dir/b": 5,
        "dir/deep/er/c": 7,
        "-dash": 1,
        "quo'te\"": 1,
        "new\nline": 1,
        "$(id) ": 1,
        "ü" * 127: 1,
    }
    for name, size in files.items():
        put(base / name, size)
    (base / "empty").mkdir()
    put(base / ".a.0123abcd.1.dmpart")
    put(base / "part.dmpart/in")
    put(base.parent / "outside" / "secret")
    (base / "link").symlink_to("a")
    (base / "dangling").symlink_to("nowhere")
    (base / "loop").symlink_to(".")
    (base / "out").symlink_to(base.parent / "outside")
    os.mkfifo(base / "dir" / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(base / "socket"))
    bad = os.fsencode(base) + b"/\xff\xfe"
    os.mkdir(bad)
    put(Path(os.fsdecode(bad)) / "in")
    put(Path(os.fsdecode(os.fsencode(base) + b"/dir/\xe9")))
    walk = Walk(max_files=100)
    found = dict(walk.files(session, str(base)))
    assert {name: stat.size for name, stat in found.items()} == files
    assert {stat.kind for stat in found.values()} == {FileKind.FILE}
    assert (walk.skipped, walk.unnameable) == (8, 2)


def test_a_tree_with_too_much_is_refused(session: Session, base: Path) -> None:
    for number in range(5):
        put(base / f"d{number}" / "f")
    assert len(list(Walk(max_files=5).files(session, str(base)))) == 5
    with pytest.raises(TooLarge, match="more than 4 files"):
        list(Walk(max_files=4).files(session, str(base)))
    assert len(list(Walk(max_files=5, max_entries=10).files(session, str(base)))) == 5
    with pytest.raises(TooLarge, match="more than 9 entries"):
        list(Walk(max_files=5, max_entries=9).files(session, str(base)))
    assert session.stat(str(base)).kind is FileKind.DIRECTORY  # a walk that was left leaves the session usable


def test_directories_may_lie_deep_but_not_endlessly(session: Session, base: Path) -> None:
    deep = "/".join(["d"] * DEPTH_MAX)
    put(base / deep / "f")
    assert [name for name, _ in Walk(max_files=5).files(session, str(base))] == [f"{deep}/f"]
    (base / deep / "d").mkdir()
    with pytest.raises(TooLarge, match="directories are nested"):
        list(Walk(max_files=5).files(session, str(base)))


def test_a_path_that_is_too_long_can_have_no_object(session: Session, base: Path) -> None:
    put(base / "name")
    walk = Walk(max_files=5)
    assert list(walk.files(session, str(base), prefix="p" * 4092)) == []
    assert walk.unnameable == 1
    assert len(list(Walk(max_files=5).files(session, str(base), prefix="p" * 4091))) == 1


def test_a_directory_that_goes_away_is_left_out(session: Session, base: Path) -> None:
    for name in ("a", "b"):
        put(base / name / "f")
    walking = Walk(max_files=5).files(session, str(base))
    first, _ = next(walking)
    gone = base / ("b" if first == "a/f" else "a")
    (gone / "f").unlink()
    gone.rmdir()
    assert list(walking) == []
    with pytest.raises(PathMissing):
        list(Walk(max_files=5).files(session, str(gone)))


def test_a_trees_root_is_confined(session: Session, machine: Machine, base: Path) -> None:
    put(base / "real" / "f")
    (base / "inside").symlink_to("real")
    (base / "outside").symlink_to(base.parent)
    (base / "top").symlink_to(".")
    real = os.path.realpath(base)
    assert tree_root(session, machine, "") == (real, "")
    assert tree_root(session, machine, "real") == (f"{real}/real", "real")
    assert tree_root(session, machine, "inside") == (f"{real}/real", "real")
    assert tree_root(session, machine, "top") == (real, "")
    with pytest.raises(PathNotAllowed):
        tree_root(session, machine, "outside")
    with pytest.raises(InvalidRequest):
        tree_root(session, machine, "real/f")
    for missing in ("nothing", "real/nothing", "real/f/below"):
        with pytest.raises(SourceMissing):
            tree_root(session, machine, missing)
