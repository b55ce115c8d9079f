"""Channels of a short transfer, for which the login takes longer than the bytes.

ssh waits 80 ms in each login: twice one side keeps a small packet back until the other acknowledges the one before.
Over paramiko, where the socket is ours, nothing is waited for. It is used where it makes the very connection that ssh
would make: ssh's configuration says nothing of the machine, and its host key is known as a plain key.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from datamanager.errors import MachineUnavailable
from datamanager.machines import Connection, Machine
from datamanager.signing.signer import PersonLogin
from datamanager.transports.channel import Channel
from datamanager.transports.ssh.hostkeys import KnownHosts, ssh_settings
from datamanager.transports.ssh.openssh import OpenSshConnector
from datamanager.transports.ssh.paramiko import ParamikoConnector

SEEN_FOR = 60.0
"""Seconds for which ssh's configuration is taken as it was read."""
_OF_NO_MATTER = {"sendenv", "hashknownhosts", "gssapiauthentication", "gssapidelegatecredentials", "identityfile"}
"""Settings of a distribution that change nothing for a login by certificate, nor for what runs after it."""


class PlainMachines:
    """Which machines ssh reaches with its defaults alone. Safe to share between threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: dict[tuple[str | None, int | None, str | None], tuple[float, bool]] = {}

    def __contains__(self, machine: Machine) -> bool:
        """Say whether another client reaches the machine as ssh does. Blocks, once in a minute for an account there."""
        key = machine.host, machine.port, machine.username
        until, plain = self._seen.get(key, (0.0, False))
        if until <= self._clock():
            plain = _is_plain(machine)
            self._seen[key] = self._clock() + SEEN_FOR, plain
        return plain


class ShortConnector:
    """Opens channels of a person's short transfer to one machine. Safe to share between threads."""

    def __init__(self, machine: Machine, control_dir: Path, login: PersonLogin, plain: PlainMachines) -> None:
        self.round_trip = 0.0
        self._machine, self._control_dir, self._login = machine, control_dir, login
        self._plain = plain
        self._chosen: ParamikoConnector | OpenSshConnector | None = None
        self._closed = False
        self._lock = threading.Lock()

    def open_channel(self) -> Channel:
        """Open a channel. Raises: as the connector that is chosen with the first one."""
        with self._lock:
            if self._closed:
                raise MachineUnavailable(f"{self._machine.name}: the storage is closed")
            chosen = self._chosen = self._chosen or self._choose()
        chosen.round_trip = self.round_trip
        return chosen.open_channel()

    def close(self) -> None:
        """Free what later channels would need. Idempotent."""
        with self._lock:
            self._closed, chosen = True, self._chosen
        if chosen is not None:
            chosen.close()

    def _choose(self) -> ParamikoConnector | OpenSshConnector:
        by_paramiko = self._machine.model_copy(update={"connection": Connection.PARAMIKO})
        if self._machine in self._plain and KnownHosts(by_paramiko).key_algorithms():
            return ParamikoConnector(by_paramiko, self._login, shares=True)
        return OpenSshConnector(self._machine, self._control_dir, self._login)


def _is_plain(machine: Machine) -> bool:
    login = [] if machine.username is None else ["-l", machine.username]
    configured, default = (
        {line for line in ssh_settings(machine, *options, *login) if line.split()[0] not in _OF_NO_MATTER}
        for options in ((), ("-F", "none"))
    )
    return configured == default
