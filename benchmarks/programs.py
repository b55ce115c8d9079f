"""What users type instead: scp, rsync, rclone and tar, as the system has them. Each call makes its own connection,
unless a user would have one already (`Login`)."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from datamanager.machines import Machine

GCM = "aes128-gcm@openssh.com"
"""The fastest cipher that OpenSSH has on a processor with AES; its default is chacha20."""


def installed(program: str) -> bool:
    """Say whether a program is there; who is not takes no part."""
    return shutil.which(program) is not None


def scp(machine: Machine, source: str, target: str, *flags: str, cipher: str | None = GCM) -> None:
    """Copy with scp; see `remote` for a path on the machine. `cipher` None is scp's own choice."""
    run("scp", "-q", *flags, *_options(machine, cipher), "-P", str(machine.port), source, target)


def rsync(machine: Machine, source: str, target: str, *flags: str) -> None:
    """Copy with rsync, whole files (`-W`: no delta of what is not there)."""
    shell = shlex.join(["ssh", *_options(machine, GCM), "-p", str(machine.port)])
    run("rsync", "-W", *flags, "-e", shell, source, target)


def rclone(machine: Machine, command: str, source: str, target: str) -> None:
    """Copy with rclone, its hash check off; `:sftp:` before a path names it on the machine."""
    sftp = {
        "host": str(machine.host),
        "port": str(machine.port),
        "user": str(machine.username),
        "key-file": os.fspath(machine.identity_file or ""),
        "known-hosts-file": os.fspath(machine.known_hosts or ""),
    }
    options = [word for name, value in sftp.items() for word in (f"--sftp-{name}", value)]
    run("rclone", "--config", os.devnull, *options, "--sftp-disable-hashcheck", command, source, target)


def tar(machine: Machine, tree: Path, directory: Path) -> None:
    """Pack a tree here and unpack it there, through a pipe: `tar | ssh tar`."""
    unpack = shlex.join(["tar", "-x", "-C", os.fspath(directory), "-f", "-"])
    with subprocess.Popen(["tar", "-c", "-C", tree.parent, "-f", "-", tree.name], stdout=subprocess.PIPE) as packer:
        subprocess.run(
            ["ssh", *_options(machine, GCM), "-p", str(machine.port), "--", str(machine.host), unpack],
            stdin=packer.stdout,
            check=True,
        )
    if packer.returncode:
        raise subprocess.CalledProcessError(packer.returncode, "tar")


def untar(machine: Machine, tree: Path, directory: Path) -> None:
    """Pack a tree on the machine and unpack it here: `ssh tar | tar`."""
    pack = shlex.join(["tar", "-c", "-C", os.fspath(tree.parent), "-f", "-", tree.name])
    through = ["ssh", *_options(machine, GCM), "-p", str(machine.port), "--", str(machine.host), pack]
    with subprocess.Popen(through, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as packer:
        subprocess.run(["tar", "-x", "-C", directory, "-f", "-"], stdin=packer.stdout, check=True)
    if packer.returncode:
        raise subprocess.CalledProcessError(packer.returncode, "tar")


class Login:
    """A user who is logged in on a machine: commands run there without another connection."""

    def __init__(self, machine: Machine, socket: Path) -> None:
        self._machine = machine
        self._through = ["-S", os.fspath(socket), "-p", str(machine.port), "--", str(machine.host)]

    def run(self, *words: str) -> None:
        """Run a command there."""
        run("ssh", *self._through, shlex.join(words))


@contextmanager
def logged_in(machine: Machine, folder: Path) -> Iterator[Login]:
    """Log in on a machine, for as long as the context lasts. `folder`: a short path for the control socket."""
    socket = folder / "login"
    options = [*_options(machine, GCM), "-p", str(machine.port)]
    run("ssh", *options, "-M", "-N", "-f", "-S", os.fspath(socket), "--", str(machine.host))
    try:
        yield Login(machine, socket)
    finally:
        run("ssh", "-q", "-S", os.fspath(socket), "-O", "exit", "--", str(machine.host))


def ssh(machine: Machine, *words: str) -> None:
    """Run a command on the machine, over a connection of its own."""
    run(*ssh_words(machine, *words))


def ssh_words(machine: Machine, *words: str) -> list[str]:
    """Return the command that runs a command on the machine, over a connection of its own."""
    return ["ssh", *_options(machine, GCM), "-p", str(machine.port), "--", str(machine.host), shlex.join(words)]


def curl_to_ssh(url: str, certificate: Path, machine: Machine, target: Path) -> None:
    """Pipe what curl fetches into a file on the machine. Raises: CalledProcessError when either of the two fails."""
    words = ["curl", "-sSf", "--cacert", os.fspath(certificate), url]
    remote_words = f"cat > {shlex.quote(os.fspath(target))}"
    through = ["ssh", *_options(machine, GCM), "-p", str(machine.port), "--", str(machine.host), remote_words]
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as curl:
        subprocess.run(through, check=True, stdin=curl.stdout, stdout=subprocess.DEVNULL)
        if curl.wait() != 0:
            raise subprocess.CalledProcessError(curl.returncode, words)


def cp_words(source: Path, target: Path) -> list[str]:
    """Return the command that copies a file where it is run."""
    return ["cp", "--", os.fspath(source), os.fspath(target)]


def remote(machine: Machine, path: Path) -> str:
    """Name a path on a machine as scp and rsync do."""
    return f"{machine.host}:{path}"


def scp_words(machine: Machine, source: Path, target: Path, cipher: str | None) -> list[str]:
    """Return the command that, run on another machine, sends a file to `machine`. (All keys lie on this one host.)"""
    options = [*_options(machine, cipher), "-P", str(machine.port)]
    return ["scp", "-q", *options, os.fspath(source), remote(machine, target)]


def run(*argv: str | os.PathLike[str]) -> None:
    """Run a program quietly. Raises: CalledProcessError."""
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def _options(machine: Machine, cipher: str | None) -> list[str]:
    settings = {
        "BatchMode": "yes",
        "StrictHostKeyChecking": "yes",
        "UserKnownHostsFile": os.fspath(machine.known_hosts or ""),
        "GlobalKnownHostsFile": "none",
        "UpdateHostKeys": "no",
        "IdentitiesOnly": "yes",
        "IdentityFile": os.fspath(machine.identity_file or ""),
        "User": str(machine.username),
        "LogLevel": "ERROR",
    }
    if cipher is not None:
        settings["Ciphers"] = cipher
    words = ["-F", "none"]
    for name, value in settings.items():
        words += ["-o", f"{name}={value}"]
    return words
