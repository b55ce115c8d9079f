"""Notifications between the processes of one host: datagrams to Unix sockets in a private directory.

A notification is only a hint. The catalogue has the truth and everybody polls it too, so a datagram without receiver
or for a full queue is dropped, and nothing here ever waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Literal, Self

Role = Literal["mover", "api"]

MESSAGE_MAX = 512
"""Bytes of a message."""
_AT_ONCE = 64  # datagrams read before other callbacks of the loop get their turn

_log = logging.getLogger(__name__)


class NotificationSocket:
    """Where one process is notified: `{role}-{pid}-{random}.sock` in `directory`, which is made private (0700).

    It receives from the moment it is made; `listen` names the callback. To be used from one thread.

    Raises: OSError when the directory can't be made or isn't ours.
    """

    def __init__(self, directory: Path, role: Role) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._directory = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        self.name = f"{role}-{os.getpid()}-{secrets.token_hex(4)}.sock"
        try:
            os.fchmod(self._directory, 0o700)  # who may write here may notify us, nobody else
            self._socket.bind(_address(self._directory, self.name))
        except OSError:
            self._socket.close()
            os.close(self._directory)
            raise

    def listen(self, callback: Callable[[str], None]) -> None:
        """Call `callback` with every message, in the running event loop. It must not block."""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket, self._read, callback)

    def close(self) -> None:
        """Stop listening and remove the socket. Idempotent."""
        if self._socket.fileno() < 0:
            return
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(self._socket)
        self._socket.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.name, dir_fd=self._directory)
        os.close(self._directory)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self, callback: Callable[[str], None]) -> None:
        for _ in range(_AT_ONCE):
            try:
                data = self._socket.recv(MESSAGE_MAX)
            except BlockingIOError:
                return
            callback(data.decode("utf-8", "replace"))


def notify(directory: Path, role: Role, message: str) -> int:
    """Notify every process that listens in `directory` under `role`; return how many got it. Thread-safe, never waits.

    Sockets of processes that are no more are removed on the way.

    Raises: ValueError when the message is longer than MESSAGE_MAX bytes.
    """
    data = message.encode("utf-8")
    if len(data) > MESSAGE_MAX:
        raise ValueError(f"a notification may have {MESSAGE_MAX} bytes, not {len(data)}")
    with contextlib.ExitStack() as stack:
        try:
            opened = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            return 0  # no process has listened yet
        stack.callback(os.close, opened)
        sender = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK))
        names = [name for name in os.listdir(opened) if name.startswith(f"{role}-") and name.endswith(".sock")]
        return sum(_send(sender, opened, name, data) for name in names)


def _send(sender: socket.socket, directory: int, name: str, data: bytes) -> bool:
    try:
        sender.sendto(data, _address(directory, name))
    except BlockingIOError:
        return False  # its queue is full: it has been notified often enough
    except ConnectionRefusedError:
        # the process is dead; the random part keeps a new one from having the same name
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=directory)
        return False
    except FileNotFoundError:
        return False  # closed between the listing and now
    except OSError as exc:
        _log.warning("%s could not be notified: %s", name, exc)
        return False
    return True


def _address(directory: int, name: str) -> str:
    # a Unix address has room for 108 bytes, a home folder may be longer; by its descriptor it always fits (proc(5))
    return f"/proc/self/fd/{directory}/{name}"
