"""From a machine's configuration to its storage: the only place that knows every transport."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

from datamanager.errors import SettingsError
from datamanager.machines import Connection, Machine, Machines, TransportKind
from datamanager.transports.local.storage import LocalStorage
from datamanager.transports.port import Storage
from datamanager.transports.sftp.pool import SftpStorage
from datamanager.transports.ssh.openssh import OpenSshConnector
from datamanager.transports.ssh.openssh_client import ssh_program
from datamanager.transports.ssh.paramiko import ParamikoConnector


def open_storage(machine: Machine, *, control_dir: Path) -> Storage:
    """Return the machine's storage; nothing is connected before the first session.

    `control_dir` holds OpenSSH's control sockets: a short path, made here (0700) where it is missing. Who can write
    there can use our connections. Raises: SettingsError when another user can.
    """
    if machine.transport is TransportKind.LOCAL:
        return LocalStorage(machine)
    connection = machine.connection
    if connection is Connection.AUTO:
        connection = Connection.OPENSSH if ssh_program() else Connection.PARAMIKO
    if connection is Connection.PARAMIKO:
        return SftpStorage(machine, ParamikoConnector(machine))
    _make_private(control_dir)
    return SftpStorage(machine, OpenSshConnector(machine, control_dir))


class Storages:
    """The storages of all machines, each opened when it is first needed. Safe to share between threads."""

    def __init__(self, machines: Machines, control_dir: Path) -> None:
        self._machines = machines
        self._control_dir = control_dir
        self._open: dict[str, Storage] = {}
        self._lock = threading.Lock()

    def get(self, name: str) -> Storage:
        """Return a machine's storage, the same one every time. Raises: UnknownMachine."""
        machine = self._machines[name]
        with self._lock:
            if name not in self._open:
                self._open[name] = open_storage(machine, control_dir=self._control_dir)
            return self._open[name]

    def close(self) -> None:
        """Close every storage; a later `get` opens it anew. Idempotent."""
        with self._lock:
            storages, self._open = list(self._open.values()), {}
        for storage in storages:
            storage.close()


def _make_private(directory: Path) -> None:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = os.lstat(directory)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise SettingsError(f"{directory}: must be our directory with mode 0700 (it holds SSH control sockets)")
