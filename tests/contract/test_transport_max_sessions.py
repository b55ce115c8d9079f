"""A server that takes few channels a connection (sshd's MaxSessions): a refused one gets a connection of its own."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from threading import Barrier

import pytest

from datamanager.transports.port import Session
from datamanager.transports.remote.running import MANY_AT_ONCE
from tests.contract.conftest import opened
from tests.support.sshd import PrivateSshd

SESSIONS = 8
"""As many as one connection gets of us, beside programs for many files and those that hash."""


@pytest.mark.parametrize("most", [10, 4])
def test_sessions_and_programs_beyond_what_a_connection_takes(tmp_path: Path, own_control_dir: Path, most: int) -> None:
    paths = [str(tmp_path / f"file-{number}") for number in range(SESSIONS)]
    for path in paths:
        Path(path).write_text(path)

    at_work = Barrier(SESSIONS, timeout=60)

    def use(session: Session, path: str) -> tuple[bool, str, str]:
        many = session.begin_many()
        [(_, found)] = session.bulk.read([path], 4096)
        at_work.wait()  # all sessions and both programs for many files have their channels: the next one is too many
        with session.open_read(path) as reader:
            assert b"".join(map(bytes, reader.blocks())) == found.data == path.encode()  # type: ignore[union-attr]
        [(_, digest)] = session.bulk.digest([path], 4096)
        return many, str(digest), session.programs.digest(path)

    with PrivateSshd(tmp_path / "sshd", extra=[f"MaxSessions {most}"]) as server, ExitStack() as held:
        machine = server.machine("remote", tmp_path, connection="openssh", max_connections=SESSIONS)
        storage = held.enter_context(opened(machine, own_control_dir))
        sessions = [held.enter_context(storage.session()) for _ in paths]
        with ThreadPoolExecutor(SESSIONS) as pool:
            results = list(pool.map(use, sessions, paths))
        assert "no more sessions" in server.log.read_text()  # there was one too many
    expected = [hashlib.sha256(path.encode()).hexdigest() for path in paths]
    assert [digest for _, digest, _ in results] == [digest for _, _, digest in results] == expected
    assert sum(many for many, _, _ in results) == MANY_AT_ONCE
