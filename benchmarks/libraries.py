"""What programmers call instead: stock paramiko, and asyncssh. Both are connected before the clock starts."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import socket
from functools import cached_property
from pathlib import Path
from typing import Any

import paramiko
import requests

from datamanager.machines import Machine


class StockParamiko:
    """paramiko as its documentation shows it, with its own defaults. Leaving the context closes the connection.

    `no_delay` sets TCP_NODELAY, which paramiko does not.
    """

    def __init__(self, machine: Machine, *, no_delay: bool = False) -> None:
        self._machine = machine
        self._no_delay = no_delay
        self._client = paramiko.SSHClient()

    @cached_property
    def _sftp(self) -> paramiko.SFTPClient:
        machine = self._machine
        self._client.load_host_keys(os.fspath(machine.known_hosts or ""))
        self._client.connect(
            str(machine.host),
            machine.port or 22,
            username=machine.username,
            key_filename=os.fspath(machine.identity_file or ""),
            allow_agent=False,
            look_for_keys=False,
        )
        transport = self._client.get_transport()
        if self._no_delay and transport is not None and isinstance(transport.sock, socket.socket):
            transport.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self._client.open_sftp()

    def __enter__(self) -> StockParamiko:
        return self

    def __exit__(self, *exc: object) -> None:
        self._client.close()

    def connect(self) -> None:
        """Connect, if that was not done."""
        self._sftp.stat(".")

    def put(self, here: Path, there: Path) -> None:
        """Send a file."""
        self._sftp.put(os.fspath(here), os.fspath(there))

    def get(self, there: Path, here: Path) -> None:
        """Fetch a file."""
        self._sftp.get(os.fspath(there), os.fspath(here))

    def put_tree(self, tree: Path, there: Path) -> None:
        """Send a directory of files, one by one."""
        for folder, _, names in os.walk(tree):
            target = there / Path(folder).relative_to(tree)
            self._sftp.mkdir(os.fspath(target))
            for name in names:
                self.put(Path(folder, name), target / name)

    def relay(self, source: Path, other: StockParamiko, target: Path) -> None:
        """Hand a file on to another machine, read ahead, without staging it here."""
        with self._sftp.open(os.fspath(source), "rb") as file:
            file.prefetch(file.stat().st_size)
            other._sftp.putfo(file, os.fspath(target))  # type: ignore[arg-type]  # its stub wants more of it

    def fetch(self, url: str, there: Path) -> None:
        """Hand what a web server sends on to the machine, without staging it here."""
        with requests.get(url, stream=True, timeout=60) as answer:
            answer.raise_for_status()
            self._sftp.putfo(answer.raw, os.fspath(there))  # type: ignore[arg-type]  # read() is all it needs


def has_asyncssh() -> bool:
    """Say whether asyncssh is installed; without it, it takes no part."""
    return importlib.util.find_spec("asyncssh") is not None


class Asyncssh:
    """asyncssh's SFTP client with the fast cipher. Leaving the context closes the connection."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._runner = asyncio.Runner()
        self._connection: Any = None
        self._sftp: Any = None

    def __enter__(self) -> Asyncssh:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._connection is not None:
            self._connection.close()
            self._runner.run(self._connection.wait_closed())
        self._runner.close()

    def connect(self) -> None:
        """Connect, if that was not done."""
        if self._connection is None:
            self._runner.run(self._connect())

    def put(self, here: Path, there: Path) -> None:
        """Send a file."""
        self._runner.run(self._sftp.put(os.fspath(here), os.fspath(there)))

    def get(self, there: Path, here: Path) -> None:
        """Fetch a file."""
        self._runner.run(self._sftp.get(os.fspath(there), os.fspath(here)))

    async def _connect(self) -> None:
        import asyncssh

        machine = self._machine
        self._connection = await asyncssh.connect(
            str(machine.host),
            machine.port or 22,
            username=machine.username,
            client_keys=[os.fspath(machine.identity_file or "")],
            known_hosts=os.fspath(machine.known_hosts or ""),
            config=[],
            agent_path=None,
            encryption_algs=["aes128-gcm@openssh.com"],
        )
        self._sftp = await self._connection.start_sftp_client()
