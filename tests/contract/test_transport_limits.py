"""Every transport at the limits of the machine's file system: no space, no right."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from datamanager.errors import NoSpace, PermissionDenied
from datamanager.machines import Machine
from datamanager.transports.factory import open_storage
from datamanager.transports.port import Session, Storage
from datamanager.transports.values import FileKind
from tests.support.sshd import PrivateSshd

BLOCK = 255 * 1024


def test_free_space(session: Session, tmp_path: Path) -> None:
    found, free = os.statvfs(tmp_path), session.free_space(str(tmp_path))
    assert free == pytest.approx(found.f_bavail * found.f_frsize, rel=0.05)


def test_a_full_file_system_is_told(session: Session, tmp_path: Path) -> None:
    with small_file_system(tmp_path / "small", size=4 * 1024 * 1024) as small:
        with pytest.raises(NoSpace), session.create(str(small / "file")) as writer:
            for part in range(40):
                writer.write(part * BLOCK, bytes(BLOCK))
            writer.flush()
        session.remove(str(small / "file"))
        with session.create(str(small / "file")) as writer:
            writer.write(0, b"fits again")
        assert (small / "file").read_bytes() == b"fits again"


def test_a_swallowed_write_error_is_told_again(session: Session, tmp_path: Path) -> None:
    with small_file_system(tmp_path / "small", size=1024 * 1024) as small:
        with pytest.raises(NoSpace), session.create(str(small / "file")) as writer:
            with pytest.raises(NoSpace):
                writer.write(0, bytes(100 * BLOCK))
                writer.flush()
        assert session.stat(str(small / "file")).size < 100 * BLOCK


def test_access_is_refused(machine: Machine, server: PrivateSshd, tmp_path: Path, control_dir: Path) -> None:
    """As root nothing is refused, so another account asks: by logging in as it, or by becoming it."""
    if os.geteuid() != 0:
        pytest.skip("only root can log in as somebody else")
    secret = tmp_path / "secret"
    secret.mkdir(mode=0o700)
    (secret / "file").write_text("mine")
    let_others_in(server.directory, tmp_path)
    with as_nobody(machine, control_dir) as storage, storage.session() as session:
        assert session.stat(str(tmp_path)).kind is FileKind.DIRECTORY
        for path in (secret / "file", secret / "new"):
            with pytest.raises(PermissionDenied), session.open_read(str(path)):
                pass
        with pytest.raises(PermissionDenied), session.create(str(tmp_path / "new")):
            pass
        [(_, refused)] = session.bulk.make_dir([str(tmp_path / "new")])
        assert isinstance(refused, PermissionDenied)
        with pytest.raises(PermissionDenied):
            session.remove(str(secret / "file"))
    assert (secret / "file").read_text() == "mine"


def test_a_rename_that_may_not_take_the_old_name_away_leaves_no_new_one(
    machine: Machine, server: PrivateSshd, tmp_path: Path, control_dir: Path
) -> None:
    """Renamed by link and unlink, here or by the server: where only the link works nothing may be left of it."""
    if os.geteuid() != 0:
        pytest.skip("only root can log in as somebody else")
    locked, drawer = tmp_path / "locked", tmp_path / "drawer"
    locked.mkdir()
    drawer.mkdir()
    source, destination = locked / "source", drawer / "destination"
    source.write_text("precious")
    os.chown(source, 65534, -1)  # Linux lets nobody make hard links to other people's files (fs.protected_hardlinks)
    let_others_in(server.directory, tmp_path, locked)
    drawer.chmod(0o777)
    with as_nobody(machine, control_dir) as storage, storage.session() as session:
        for _ in range(2):  # the second try must not meet what the first one left
            with pytest.raises(PermissionDenied, match=str(source)):
                session.rename(str(source), str(destination), overwrite=False)
            assert list(drawer.iterdir()) == []
            assert source.read_text() == "precious"
            assert source.stat().st_nlink == 1


def let_others_in(*folders: Path) -> None:
    """Let another account get to its key and to the files: pytest keeps its directories to itself."""
    for folder in {above for one in folders for above in (one, *one.parents)}:
        if folder in folders or folder.stat().st_mode & 0o777 == 0o700:
            folder.chmod(0o755)


@contextmanager
def as_nobody(machine: Machine, control_dir: Path) -> Iterator[Storage]:
    local = machine.host is None
    account = machine if local else machine.model_copy(update={"username": "nobody"})
    storage = open_storage(account, control_dir=control_dir)
    try:
        if local:
            os.seteuid(65534)
        yield storage
    finally:
        if local:
            os.seteuid(0)
        storage.close()


@contextmanager
def small_file_system(path: Path, *, size: int) -> Iterator[Path]:
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        if os.getenv("CI"):
            raise RuntimeError(mounted.stderr)
        pytest.skip(f"no small file system can be mounted: {mounted.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)
