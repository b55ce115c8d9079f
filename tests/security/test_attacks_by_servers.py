"""Attacks by the other side: machines and sources that answer what no honest one does."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import paramiko
import pytest

from tests.support.attacked import Attacked, attacked
from tests.support.folding_sftp import FileSystem, FoldingSftp

NAMES = ["../theirs/secret.bin", "/etc/passwd", "a/../../x", "sub/file", "..", ".", "", "a\0b", "x/"]


class LyingSftp(FoldingSftp):
    """Lists one name in each directory, as a regular file."""

    name = ""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, folds=False)
        (self.root / "base" / "mine").mkdir(parents=True)


class LyingFiles(FileSystem):
    def __init__(self, server: paramiko.ServerInterface, served: LyingSftp) -> None:
        super().__init__(server, served)
        self._served = served

    def list_folder(self, path: str) -> list[paramiko.SFTPAttributes] | int:
        file = paramiko.SFTPAttributes.from_stat(os.stat(__file__), self._served.name)
        return [file]


LyingSftp.files = LyingFiles


@dataclass(frozen=True)
class Deceived:
    """An API with a machine whose server lies."""

    server: LyingSftp
    service: Attacked


@pytest.fixture(scope="module")
def deceived(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deceived]:
    """The machine is `liar`."""
    folder = tmp_path_factory.mktemp("liar")
    with (
        LyingSftp(folder / "server") as server,
        attacked(request, folder, further=[server.machine("liar", "/base")]) as service,
    ):
        yield Deceived(server, service)


@pytest.mark.attack(cwe=22, title="A machine lists names with slashes, which lead out of its directory")
@pytest.mark.parametrize("name", NAMES)
def test_name_that_is_none_is_not_registered(deceived: Deceived, name: str) -> None:
    deceived.server.name, lying = name, deceived.service
    with lying.untouched():
        for path in ("mine", ""):
            fields = {"machine": "liar", "path": path, "verify": "none", "group": "fire"}
            answer = lying.ask("POST", "/DM/register/tree", json=fields)
            assert answer.status_code in (201, 502), answer.text
            assert answer.status_code == 502 or answer.json()["registered"] == 0, answer.text


def test_name_that_is_one_is_registered(deceived: Deceived) -> None:
    deceived.server.name = "..honest"
    fields = {"machine": "liar", "path": "mine", "verify": "none", "group": "fire"}
    assert deceived.service.ask("POST", "/DM/register/tree", json=fields).json()["registered"] == 1
