"""Host keys of machines: what the known_hosts files say, for paramiko and for pinning.

Strict on both sides: a machine whose key is unknown, revoked or another one than known is refused, and nothing switches
that off.
"""

from __future__ import annotations

import base64
import re
import subprocess

import paramiko

from datamanager.errors import HostKeyMismatch, MachineUnavailable
from datamanager.known_hosts import (
    DEFAULT_FILES,
    SSH_PORT,
    entry_name,
    lines_for,
    signature_algorithms,
)
from datamanager.machines import Connection, Machine


class KnownHosts:
    """What the known_hosts files say of a machine: its own file, else the user's and the system's."""

    def __init__(self, machine: Machine) -> None:
        files = [file.expanduser() for file in DEFAULT_FILES] if machine.known_hosts is None else [machine.known_hosts]
        self._machine = machine
        self._name = known_hosts_name(machine)
        self._lines = lines_for(self._name, files)

    @property
    def alias(self) -> str:
        """The machine's name without a port, as ssh's HostKeyAlias has it."""
        with_port = re.fullmatch(r"\[(.*)\]:\d+", self._name)
        return with_port[1] if with_port else self._name

    def lines(self) -> str | None:
        """Return the known_hosts lines under `alias`, markers included, for another machine; None when no key is
        trusted.
        """
        if all(line.marker == "@revoked" for line in self._lines):
            return None
        fields = [(one.marker, self.alias, one.type, base64.b64encode(one.key).decode("ascii")) for one in self._lines]
        return "".join(" ".join(field for field in line if field) + "\n" for line in fields)

    def key_algorithms(self) -> list[str]:
        """Return the signature algorithms of the known keys, so that the server is asked for a key that we know."""
        types = [line.type for line in self._lines if not line.marker]
        return [name for one in types for name in signature_algorithms(one)]

    def check(self, key: paramiko.PKey) -> None:
        """Return when the key is known and not revoked. Raises: HostKeyMismatch."""
        where, machine = f"{self._machine.name} ({self._name})", self._machine.name
        blob = key.asbytes()
        if any(line.key == blob for line in self._lines if line.marker == "@revoked"):
            raise HostKeyMismatch(f"{where}: the machine's host key is revoked")
        plain = [line for line in self._lines if not line.marker]
        if any(line.key == blob for line in plain):
            return
        if plain:
            raise HostKeyMismatch(f"{where}: the machine's host key differs from the known one")
        if any(line.marker == "@cert-authority" for line in self._lines):
            raise HostKeyMismatch(f'{where}: host certificates can only be checked with connection = "openssh"')
        raise HostKeyMismatch(f"{where}: the machine's host key is not known; run: dm machine trust {machine}")


def address(machine: Machine) -> tuple[str, int]:
    """Return the host and port to connect to; a Host alias of ~/.ssh/config counts where OpenSSH is the connection.

    Raises: MachineUnavailable when ssh can't read its configuration.
    """
    config = _ssh_config(machine)
    return config["hostname"], int(config["port"])


def known_hosts_name(machine: Machine) -> str:
    """Return the name under which the machine stands in known_hosts."""
    config = _ssh_config(machine)
    host, port = config.get("hostkeyalias", config["hostname"]).lower(), int(config["port"])
    return host if "hostkeyalias" in config else entry_name(host, port)


def ssh_settings(machine: Machine, *options: str) -> list[str]:
    """Return what ssh would use for the machine, line by line (`ssh -G`).

    Raises: FileNotFoundError when there is no ssh; MachineUnavailable when it can't read its configuration.
    """
    port = [] if machine.port is None else ["-p", str(machine.port)]
    try:
        answer = subprocess.run(
            ["ssh", "-G", *options, *port, "--", str(machine.host)],  # machines.py checks that there is one
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=True,
        )
    except subprocess.CalledProcessError as exc:
        raise MachineUnavailable(f"{machine.name}: {str(exc.stderr).strip()[-300:]}") from exc
    return answer.stdout.splitlines()


def _ssh_config(machine: Machine) -> dict[str, str]:
    """Return what ssh would use for the machine; only our own values where it is not the connection."""
    plain = {"hostname": str(machine.host), "port": str(machine.port or SSH_PORT)}
    if machine.connection is Connection.PARAMIKO:
        return plain
    try:
        lines = ssh_settings(machine)
    except FileNotFoundError:
        return plain
    return plain | dict(line.partition(" ")[::2] for line in lines)
