"""Wake-ups by Unix datagrams: real sockets, real processes."""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest

from datamanager.messaging.notifications import MESSAGE_MAX, NotificationSocket, notify
from tests.support.process import open_files


async def _heard(socket: NotificationSocket, count: int) -> list[str]:
    messages: list[str] = []
    enough = asyncio.Event()

    def note(message: str) -> None:
        messages.append(message)
        if len(messages) >= count:
            enough.set()

    socket.listen(note)
    await asyncio.wait_for(enough.wait(), 60)
    return messages


def test_every_listener_of_the_role_hears_and_others_do_not(tmp_path: Path) -> None:
    with (
        NotificationSocket(tmp_path, "mover") as one,
        NotificationSocket(tmp_path, "mover") as two,
        NotificationSocket(tmp_path, "api") as api,
    ):
        assert notify(tmp_path, "mover", "queued") == 2
        assert notify(tmp_path, "api", "ended") == 1

        async def all_of_them() -> list[list[str]]:
            return list(await asyncio.gather(_heard(one, 1), _heard(two, 1), _heard(api, 1)))

        assert asyncio.run(all_of_them()) == [["queued"], ["queued"], ["ended"]]


def test_a_message_sent_while_listening_wakes_at_once_from_another_thread(tmp_path: Path) -> None:
    async def scene() -> None:
        with NotificationSocket(tmp_path, "mover") as ear:
            threading.Timer(0.05, notify, (tmp_path, "mover", "grüße 🚚")).start()
            assert await _heard(ear, 1) == ["grüße 🚚"]  # nobody polls here

    asyncio.run(scene())


def test_a_directory_whose_path_does_not_fit_a_unix_address(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 200) / ("e" * 200) / "run"
    with NotificationSocket(deep, "mover") as ear:
        assert notify(deep, "mover", "queued") == 1
        assert asyncio.run(_heard(ear, 1)) == ["queued"]
        assert os.listdir(deep) == [ear.name]
    assert os.listdir(deep) == []


def test_the_directory_is_private_even_if_it_was_not(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir(mode=0o755)
    with NotificationSocket(run, "api"):
        assert stat.S_IMODE(run.stat().st_mode) == 0o700


def test_nobody_listens(tmp_path: Path) -> None:
    assert notify(tmp_path / "never made", "mover", "queued") == 0
    assert notify(tmp_path, "mover", "queued") == 0


def test_a_listener_that_does_not_read_never_blocks_the_sender(tmp_path: Path) -> None:
    with NotificationSocket(tmp_path, "mover"):
        reached = [notify(tmp_path, "mover", "x" * MESSAGE_MAX) for _ in range(5000)]  # else this would never end
        assert reached[0] == 1
        assert reached[-1] == 0, "the queue was never full: the test proves nothing"
        assert len(os.listdir(tmp_path)) == 1, "a full queue is no dead process"


def test_the_socket_of_a_killed_process_is_removed(tmp_path: Path) -> None:
    script = (
        "import sys, os, signal, pathlib\n"
        "from datamanager.messaging.notifications import NotificationSocket\n"
        "NotificationSocket(pathlib.Path(sys.argv[1]), 'mover')\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert len(os.listdir(tmp_path)) == 1, "the killed process left no socket: the test proves nothing"
    with NotificationSocket(tmp_path, "mover") as ear:
        assert notify(tmp_path, "mover", "queued") == 1
        assert os.listdir(tmp_path) == [ear.name]


def test_odd_files_in_the_directory_are_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "mover-folder.sock").mkdir()
    (tmp_path / "notes.txt").write_text("kept")
    with NotificationSocket(tmp_path, "mover") as ear:
        assert notify(tmp_path, "mover", "queued") == 1
        assert asyncio.run(_heard(ear, 1)) == ["queued"]
    assert (tmp_path / "notes.txt").read_text() == "kept"


def test_a_message_that_is_too_long_is_refused(tmp_path: Path) -> None:
    notify(tmp_path, "mover", "x" * MESSAGE_MAX)
    with pytest.raises(ValueError, match="512 bytes"):
        notify(tmp_path, "mover", "x" * (MESSAGE_MAX + 1))


def test_closing_twice_leaks_nothing(tmp_path: Path) -> None:
    before = Counter(open_files())
    for _ in range(20):
        ear = NotificationSocket(tmp_path, "mover")
        notify(tmp_path, "mover", "queued")
        ear.close()
        ear.close()
    assert not Counter(open_files()) - before
    assert os.listdir(tmp_path) == []
