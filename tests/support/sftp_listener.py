"""What SFTP servers of tests that are made of paramiko have in common: a port on loopback, and a transport a client."""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType
from typing import Any, ClassVar, Self

import paramiko
from paramiko.common import OPEN_SUCCEEDED


class SftpListener(paramiko.ServerInterface):
    """Serves SFTP while its context lasts, by `server` and `files` of a subclass; they get this object."""

    server: ClassVar[type[paramiko.SFTPServer]] = paramiko.SFTPServer
    files: ClassVar[Any]
    """The class of the file system."""

    def __init__(self) -> None:
        self.key = paramiko.ECDSAKey.generate()
        self._transports: list[paramiko.Transport] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(60)
        for transport in self._transports:
            transport.close()
            transport.join(60)

    def check_channel_request(self, kind: str, chanid: int) -> int:
        """Open sessions."""
        return OPEN_SUCCEEDED

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            # replies of several requests are sent one by one: without it each waits 40 ms for the client's ACK
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            transport = paramiko.Transport(connection)
            transport.add_server_key(self.key)
            transport.set_subsystem_handler("sftp", self.server, self.files, self)
            self._transports.append(transport)
            # a client that distrusts us leaves in the middle of it
            with contextlib.suppress(paramiko.SSHException, EOFError, OSError):
                transport.start_server(server=self)
