"""What a machine copies itself is on stable storage before it gets its name: a move removes the source after that."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from datamanager.machines import Machine
from datamanager.transports.factory import open_storage
from datamanager.transports.values import KeptAttributes, NewFile
from tests.contract.conftest import opened, until
from tests.support.sshd import PrivateSshd


class Telling(PrivateSshd):
    """A server that writes down what its SFTP server is asked for, and refuses some of it."""

    def __init__(self, directory: Path, refused: str) -> None:
        self.refused, self.telling = refused, directory / "told"
        super().__init__(directory)

    def _prepare(self) -> None:
        super()._prepare()
        config, program = self.directory / "sshd_config", self.directory / "sftp-server"
        words = f"/usr/lib/openssh/sftp-server -e -l DEBUG3 {self.refused and f'-P {self.refused}'}"
        program.write_text(f"#!/bin/sh\nexec {words} 2>>{self.telling}\n")
        program.chmod(0o755)
        config.write_text(config.read_text().replace("internal-sftp", str(program)))

    def told(self, words: str) -> bool:
        """Say whether that was written down."""
        return words in self.telling.read_text(errors="replace")


@pytest.mark.parametrize("refused", ["", "copy-data"], ids=["copy-data", "cp"])
def test_a_copy_on_an_ssh_machine(tmp_path: Path, control_dir: Path, refused: str) -> None:
    home, base = tmp_path / "sshd", tmp_path / "base"
    home.mkdir()
    base.mkdir()
    (base / "file").write_bytes(os.urandom(100_000))
    with Telling(home, refused) as server, opened(server.machine("remote", base), control_dir) as storage:
        with storage.session() as session:
            session.programs.copy(str(base / "file"), str(base / "copy"))
        assert until(lambda: server.told(f'fsync "{base / "copy"}"'))
        assert (base / "copy").read_bytes() == (base / "file").read_bytes()
        assert server.told('copy-data from "') is not bool(refused)


def test_a_copy_on_this_host(tmp_path: Path, control_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def note(handle: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{handle}"))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", note)
    (tmp_path / "file").write_bytes(os.urandom(100_000))
    here = Machine.model_validate({"name": "here", "transport": "local", "base_dir": str(tmp_path)})
    with open_storage(here, control_dir=control_dir).session() as session:
        session.programs.copy(str(tmp_path / "file"), str(tmp_path / "copy"))
    assert str(tmp_path / "copy") in synced


def test_a_file_system_of_this_host_that_has_no_modes_times_or_fsync(
    tmp_path: Path, control_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As FAT and file systems in user space answer; none of them can be mounted everywhere."""

    def refused(number: int) -> Callable[..., None]:
        def call(*_: object, **__: object) -> None:
            raise OSError(number, os.strerror(number))

        return call

    monkeypatch.setattr(os, "chmod", refused(errno.EPERM))
    monkeypatch.setattr(os, "utime", refused(errno.EPERM))
    monkeypatch.setattr(os, "fsync", refused(errno.EINVAL))
    here = Machine.model_validate({"name": "here", "transport": "local", "base_dir": str(tmp_path)})
    with open_storage(here, control_dir=control_dir).session() as session:
        with session.create(str(tmp_path / "part")) as writer:
            writer.write(0, b"bytes")
            writer.flush()
        kept = session.set_attributes(str(tmp_path / "part"), mode=0o640, mtime=1_500_000_000)
        [(_, small)] = session.bulk.write([NewFile(str(tmp_path / "small"), b"few", 0o640, 1_500_000_000)])
        session.rename(str(tmp_path / "part"), str(tmp_path / "file"), overwrite=False)
    assert isinstance(small, KeptAttributes)
    assert kept.not_kept == small.not_kept == ("mode", "mtime")
    assert kept.mtime == int((tmp_path / "file").stat().st_mtime)
    assert (tmp_path / "file").read_bytes() == b"bytes"
