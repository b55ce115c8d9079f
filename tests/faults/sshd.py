"""An SSH server that is reached through a proxy, obeys file permissions even for root, and can be frozen."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from datamanager.machines import Machine
from tests.support.process import signal_each
from tests.support.programs import find_program
from tests.support.proxy import Proxy
from tests.support.sshd import PrivateSshd, find_sshd


class FarSshd(PrivateSshd):
    """As PrivateSshd, but its machines are reached by `way`, so that the way can be slow and can break.

    Root may write anywhere; the tests may run as root. So this server gives up that capability for its sessions.
    """

    def __init__(self, directory: Path, *, rate: float | None = None) -> None:
        super().__init__(directory)
        self.way = Proxy(self.port, rate=rate)

    def start(self) -> None:
        """Start the server and return when it listens."""
        argv = [find_sshd(), "-D", "-e", "-f", str(self.directory / "sshd_config")]
        if os.geteuid() == 0:
            argv = [find_program("setpriv"), "--bounding-set=-dac_override,-dac_read_search", "--", *argv]
        self._prepare()
        (self.directory / "known_hosts_by_way").write_text(
            self.known_host_line().replace(f":{self.port} ", f":{self.way.port} ")
        )
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._wait_until_listening(self._process)

    def machine(self, name: str, base_dir: Path | str, **overrides: Any) -> Machine:
        """Return a machine of this name whose storage is reached by the way."""
        far = {"port": self.way.port, "known_hosts": self.directory / "known_hosts_by_way"}
        return super().machine(name, base_dir, **far, **overrides)

    def freeze(self, seconds: float) -> int:
        """Stop every session that there is now for so long; return how many processes that were."""
        frozen = self.descendants()
        signal_each(frozen, signal.SIGSTOP)
        try:
            time.sleep(seconds)
        finally:
            signal_each(frozen, signal.SIGCONT)
        return len(frozen)
