"""The system's OpenSSH client: how it is called, what its end means, and remote programs through it."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from datamanager.errors import (
    AuthenticationFailed,
    ConnectionLost,
    HostKeyMismatch,
    MachineUnavailable,
    TransportError,
)
from datamanager.machines import Machine
from datamanager.signing.agent import LoginAgent
from datamanager.transports.login_shell import command_line
from datamanager.transports.piped_program import PipedProgram
from datamanager.transports.values import to_wire

CONNECTION_FAILED = 255
"""ssh's own exit status, as opposed to the remote program's."""


def ssh_program() -> str | None:
    """Return the path of the OpenSSH client, None when there is none."""
    return shutil.which("ssh")


def classify(machine: Machine, status: int | None, stderr: str, cause: TransportError) -> TransportError:
    """Return why ssh ended before the SFTP server spoke.

    ssh has one exit status for all its failures; only its messages tell them apart. These are OpenSSH's own
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


def login_words(agent: LoginAgent | None) -> list[str]:
    """Return the options with which ssh logs in by this agent's certificate, and by nothing else of ours."""
    settings = {} if agent is None else certificate_settings(_quoted(agent.path))
    return [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]


def certificate_settings(agent: str) -> dict[str, str]:
    """Return the settings with which ssh logs in by a certificate that an agent holds, `agent` as ssh_config has it.

    The keys that ~/.ssh/config and /etc/ssh/ssh_config name can't be taken away, but are of no accepted type.
    """
    return {
        "IdentityAgent": agent,
        "IdentityFile": "none",
        "IdentitiesOnly": "no",
        "PreferredAuthentications": "publickey",
        "PubkeyAuthentication": "yes",
        "PubkeyAcceptedKeyTypes": "ssh-ed25519-cert-v01@openssh.com",  # PubkeyAcceptedAlgorithms since 8.5
    }


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


class OpenSshProgram(PipedProgram):
    """See RemoteProgram. `master` is the control socket of the connection to share.

    A forwarded agent needs a connection of its own: the one that is shared was made without, and the process that holds
    it refuses what was not requested then.
    """

    def __init__(
        self,
        machine: Machine,
        master: Path | None,
        argv: Sequence[str],
        *,
        stdin: bool,
        forward_agent: bool,
        login: Sequence[str] = (),
    ) -> None:
        options, connection = ([*login, "-A"], None) if forward_agent else ([*login], master)
        start = partial(start_ssh, machine, connection, options, [command_line(argv)], stderr=subprocess.DEVNULL)
        super().__init__(machine.stall_timeout, start, stdin=stdin)

    def exit_status(self) -> int | None:
        """Return the exit status; ssh's own failure is None."""
        status = super().exit_status()
        return None if status == CONNECTION_FAILED else status

    def _ended(self) -> TransportError:
        ended = super()._ended()
        if self._process.returncode == CONNECTION_FAILED:
            return ConnectionLost("the connection broke while the program ran")
        return ended
