"""Host keys as a machine shows them, to be compared by a person and pinned in a known_hosts file."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import paramiko

from datamanager.errors import MachineUnavailable
from datamanager.known_hosts import matches, parse, signature_algorithms
from datamanager.machines import Machine
from datamanager.transports.ssh.hostkeys import address, known_hosts_name
from datamanager.transports.ssh.paramiko import connect_transport

_KEY_TYPES = ("ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521", "ssh-rsa")


def fetch_host_keys(machine: Machine) -> list[paramiko.PKey]:
    """Fetch the machine's host keys, one of each type that it has, without logging in.

    What comes back is not proved in any way: a person compares the fingerprint. Raises: MachineUnavailable.
    """
    keys: list[paramiko.PKey] = []
    refused: MachineUnavailable | None = None
    for one in _KEY_TYPES:
        try:
            transport = connect_transport(machine, address(machine), signature_algorithms(one), only=True)
        except MachineUnavailable as exc:
            # a server without a key of this type ends the exchange; one that is unreachable does so for every type
            refused = exc
            continue
        try:
            keys.append(transport.get_remote_server_key())
        finally:
            transport.close()
    if not keys and refused is not None:
        raise refused
    return keys


def pin(machine: Machine, key: paramiko.PKey, file: Path) -> bool:
    """Add the key to a known_hosts file and return whether that was needed.

    The file is replaced in one step (mode 0600) under a lock of its directory; a key that stands there is not added
    again.
    """
    file = file.resolve()  # a symlink stays one
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    name = known_hosts_name(machine)
    with _locked(file.parent):
        old = file.read_bytes() if file.exists() else b""
        for line in parse(old):
            if not line.marker and line.key == key.asbytes() and matches(line.hosts, name):
                return False
        gap = b"\n" if old and not old.endswith(b"\n") else b""
        _replace(file, old + gap + f"{name} {key.get_name()} {key.get_base64()}\n".encode())
    return True


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _replace(file: Path, content: bytes) -> None:
    handle, temporary = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)  # mode 0600
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        os.replace(temporary, file)
    except BaseException:
        os.unlink(temporary)
        raise
