"""The command line of the system's OpenSSH client: how it is called, and what its end means."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from datamanager.errors import AuthenticationFailed, HostKeyMismatch, MachineUnavailable, TransportError
from datamanager.machines import Machine
from datamanager.transports.paths import to_wire

CONNECTION_FAILED = 255
"""ssh's own exit status, as opposed to the remote program's."""


def ssh_program() -> str | None:
    """Return the path of the OpenSSH client, None when there is none."""
    return shutil.which("ssh")


def classify(machine: Machine, status: int | None, stderr: str, cause: TransportError) -> TransportError:
    """Return why ssh ended before the SFTP server spoke.

    ssh has one exit status for all its failures; only its words tell them apart. These are OpenSSH's own
    (sshconnect.c, sshconnect2.c, sshkey.c), the same since 5.x.
    """
    words = " ".join(line.strip() for line in stderr.splitlines() if line.strip(" \r@"))
    for path in (machine.identity_file, machine.known_hosts):
        if path is not None:  # clients read this; where our keys lie is not theirs to know
            words = words.replace(os.fspath(path), path.name)
    if "REVOKED HOST KEY DETECTED" in stderr or "is marked as revoked" in stderr:
        return HostKeyMismatch(f"{machine.name}: the machine's host key is revoked")
    if "HOST IDENTIFICATION HAS CHANGED" in stderr:
        return HostKeyMismatch(f"{machine.name}: the machine's host key differs from the known one")
    if "Host key verification failed" in stderr:
        return HostKeyMismatch(
            f"{machine.name}: the machine's host key is not known; run: dm machine trust {machine.name}"
        )
    if "Permission denied (" in stderr or "Too many authentication failures" in stderr:
        return AuthenticationFailed(f"{machine.name}: the machine refused our login: {words[-300:]}")
    if status == CONNECTION_FAILED or status is None:
        return MachineUnavailable(f"{machine.name}: can't be reached: {words[-300:] or cause.detail}")
    return MachineUnavailable(f"{machine.name}: no SFTP server there (status {status}): {words[-300:] or cause.detail}")


def start_ssh(
    machine: Machine,
    master: Path | None,
    options: list[str],
    words: list[str],
    *,
    stdin: int,
    stdout: int,
    stderr: int,
) -> subprocess.Popen[bytes]:
    """Start `ssh options host words` in a process group of its own.

    `master` is the control socket of the connection to share or to begin, None for a connection that is not shared.
    Raises: MachineUnavailable when ssh can't be started.
    """
    program = ssh_program()
    if program is None:
        raise MachineUnavailable(f"{machine.name}: there is no ssh on this host's PATH")
    # machines.py checks that there is a host and that it does not look like an option
    argv = [program, *_options(machine, master), *options, "--", str(machine.host), *words]
    try:
        # an own process group: Ctrl-C in the terminal is for us, who end our transfers in order
        return subprocess.Popen(
            [to_wire(word) for word in argv], stdin=stdin, stdout=stdout, stderr=stderr, bufsize=0, process_group=0
        )
    except OSError as exc:
        raise MachineUnavailable(f"{machine.name}: ssh can't be started: {exc}") from exc


def option_words(settings: Mapping[str, str], connect_timeout: float, stall_timeout: float) -> list[str]:
    """Return `-T` and the `-o` words of these settings and of those that hold for every ssh, ours or a machine's: no
    question, no unchecked host key, no forwarding. Timeouts are in seconds.
    """
    always = {
        "BatchMode": "yes",
        "StrictHostKeyChecking": "yes",
        "NoHostAuthenticationForLocalhost": "no",
        "UpdateHostKeys": "no",
        "ConnectTimeout": str(math.ceil(connect_timeout)),
        "ServerAliveInterval": str(max(1, math.ceil(stall_timeout / 3))),
        "ServerAliveCountMax": "3",
        "ClearAllForwardings": "yes",
        "ForwardAgent": "no",
        "ForwardX11": "no",
        "PermitLocalCommand": "no",
        "LogLevel": "ERROR",
    }
    return ["-T", *(word for key, value in {**always, **settings}.items() for word in ("-o", f"{key}={value}"))]


def _options(machine: Machine, master: Path | None) -> list[str]:
    settings = {"Ciphers": "^aes128-gcm@openssh.com"}
    if machine.known_hosts is not None:
        settings |= {"UserKnownHostsFile": _quoted(machine.known_hosts), "GlobalKnownHostsFile": "none"}
    if master is None:
        settings |= {"ControlMaster": "no", "ControlPath": "none"}
    else:
        settings |= {"ControlMaster": "auto", "ControlPersist": "2", "ControlPath": _quoted(master)}
    if machine.identity_file is not None:
        settings["IdentitiesOnly"] = "yes"
    argv = ["-e", "none", *option_words(settings, machine.connect_timeout, machine.stall_timeout)]
    if machine.identity_file is not None:
        argv += ["-i", os.fspath(machine.identity_file).replace("%", "%%")]
    if machine.username is not None:
        argv += ["-l", machine.username]
    if machine.port is not None:
        argv += ["-p", str(machine.port)]
    return argv


def _quoted(path: Path) -> str:
    """Return a path as an argument in ssh_config's syntax, which splits at blanks and expands `%`."""
    text = os.fspath(path).replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{text}"'
