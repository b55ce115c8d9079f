"""An SSH server with a user for each login shell, all of them this process's own account."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datamanager.machines import Machine
from tests.support.programs import find_program, missing
from tests.support.sshd import PrivateSshd

SHELLS = ("sh", "bash", "zsh", "dash", "fish", "tcsh")
SCRIPTS = {"bash": ".bashrc", "zsh": ".zshenv", "fish": ".config/fish/config.fish", "tcsh": ".cshrc"}
"""What a shell reads before a command of ssh's; sh and dash read nothing."""


class LoginShells(PrivateSshd):
    """The users are `dm-sh`, `dm-bash`, …; names in the passwd file that the C library is made to read (nss_wrapper).

    The server copies by `cp`, as those do that have no copy-data extension. A login script prints `prints`, and with
    `by_shell` the SFTP server is started by the login shell, as sshd does with one that is not its own. The machines'
    `ssh` logs in to this same server.
    """

    def __init__(self, directory: Path, *, prints: Mapping[str, str] | None = None, by_shell: bool = False) -> None:
        self._bin = directory / "bin"
        self._prints = prints or {}
        self._sftp = _sftp_server() if by_shell else "internal-sftp -P copy-data"
        super().__init__(directory, path=f"{self._bin}:{os.environ['PATH']}")

    def machine(self, name: str, base_dir: Path | str, *, shell: str = "sh", **overrides: Any) -> Machine:
        """Return a machine whose login shell this is."""
        return super().machine(name, base_dir, username=f"dm-{shell}", **overrides)

    def _prepare(self) -> None:
        super()._prepare()
        config = self.directory / "sshd_config"
        config.write_text(config.read_text().replace("Subsystem sftp internal-sftp", f"Subsystem sftp {self._sftp}"))
        for shell, line in self._prints.items():
            script = self.directory / SCRIPTS[shell]
            script.parent.mkdir(parents=True, exist_ok=True)
            script.write_text(f"{line}\n")
        self._bin.mkdir(exist_ok=True)
        ssh = self._bin / "ssh"
        kill = self._bin / "kill"
        kill.write_text("#!/bin/sh\nexit 1\n")  # as good as none: a machine may have the shell's own only
        kill.chmod(0o755)
        login = f"-F none -o IdentitiesOnly=yes -i {shlex.quote(os.fspath(self.client_key))}"
        ssh.write_text(f'#!/bin/sh\nexec {shlex.quote(str(shutil.which("ssh")))} {login} "$@"\n')
        ssh.chmod(0o755)
        users = (
            f"dm-{shell}:x:{os.getuid()}:{os.getgid()}::{self.directory}:{find_program(shell)}" for shell in SHELLS
        )
        passwd = self.directory / "passwd"
        passwd.write_text("\n".join([Path("/etc/passwd").read_text().rstrip(), *users, ""]))
        self.env = os.environ | {
            "LD_PRELOAD": _nss_wrapper(),
            "NSS_WRAPPER_PASSWD": os.fspath(passwd),
            "NSS_WRAPPER_GROUP": "/etc/group",
        }


def _nss_wrapper() -> str:
    found = next(Path("/usr").glob("lib*/**/libnss_wrapper.so*"), None)
    return os.fspath(found) if found is not None else missing("libnss-wrapper is not installed")


def _sftp_server() -> str:
    folders = (Path("/usr/lib/openssh"), Path("/usr/libexec/openssh"), Path("/usr/lib/ssh"), Path("/usr/libexec"))
    return find_program("sftp-server", also=folders)
