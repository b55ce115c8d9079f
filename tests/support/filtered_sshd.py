"""A private OpenSSH server whose SFTP server answers some requests otherwise; it has no shell if it is told so."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.support import sftp_filter
from tests.support.sshd import PrivateSshd


class FilteredSshd(PrivateSshd):
    """`rules`: see `sftp_filter`. Without a shell every program that is started is the SFTP server."""

    def __init__(self, directory: Path, rules: Sequence[str], *, shell: bool = True) -> None:
        self._program = directory / "sftp-server"
        super().__init__(directory, extra=() if shell else [f"ForceCommand {self._program}"])
        self.rules = list(rules)

    def _prepare(self) -> None:
        super()._prepare()
        config = self.directory / "sshd_config"
        words = [sys.executable, "-S", "-E", sftp_filter.__file__, *self.rules]
        self._program.write_text(f"#!/bin/sh\nexec {shlex.join(words)}\n")
        self._program.chmod(0o755)
        config.write_text(config.read_text().replace("internal-sftp", str(self._program)))
