"""What runs while figures are measured: private servers on loopback, a delay proxy, and files on memory.

All of it lives in one folder and ends with it, also after Ctrl-C.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path

from datamanager.machines import Connection, Machine
from tests.support.sshd import PrivateSshd
from tests.support.web import Web

BLOCK = 1 << 20
ROUND_TRIP_MS = 20
"""Milliseconds that the delay proxy makes of a round trip."""


class Stage:
    """Servers and machines; each is started when it is first asked for.

    `near`, `far` and `other` are the folders of this host, of the first and of the second SSH server.
    """

    def __init__(self, folder: Path, control: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.control = control
        self.near, self.far, self.other = (folder / name for name in ("near", "far", "other"))
        for place in (self.near, self.far, self.other):
            place.mkdir()
        self._known_hosts = folder / "known_hosts"
        self._known_hosts.touch()
        self._stack = stack

    @cached_property
    def _first(self) -> PrivateSshd:
        return self._start_sshd("sshd-first")

    @cached_property
    def _second(self) -> PrivateSshd:
        return self._start_sshd("sshd-second")

    @cached_property
    def here(self) -> Machine:
        """This host."""
        return Machine.model_validate({"name": "near", "transport": "local", "base_dir": os.fspath(self.near)})

    @cached_property
    def machine(self) -> Machine:
        """The first SSH server, by the system's OpenSSH client."""
        return self._machine("far", self._first, self.far, Connection.OPENSSH)

    @cached_property
    def by_paramiko(self) -> Machine:
        """The first SSH server, by paramiko's own transport."""
        return self._machine("far-by-paramiko", self._first, self.far, Connection.PARAMIKO)

    @cached_property
    def second_machine(self) -> Machine:
        """The second SSH server."""
        return self._machine("other", self._second, self.other, Connection.OPENSSH)

    @cached_property
    def pushing(self) -> tuple[Machine, Machine]:
        """The two SSH servers as machines of which the first may push to the second, with our SSH agent."""
        self._start_agent()
        allowed = {"direct": True, "forward_agent": True}
        return self.machine.model_copy(update=allowed), self.second_machine.model_copy(update=allowed)

    @cached_property
    def distant(self) -> Machine:
        """The first SSH server, a round trip of 20 ms away."""
        return self._machine("distant", self._first, self.far, Connection.OPENSSH, self._delay(self._first))

    @cached_property
    def second_distant(self) -> Machine:
        """The second SSH server, a round trip of 20 ms away."""
        return self._machine("distant-other", self._second, self.other, Connection.OPENSSH, self._delay(self._second))

    @property
    def sshd_pids(self) -> list[int]:
        """The processes of the SSH servers that were started."""
        known = self.__dict__  # where cached properties are
        return [known[name].pid for name in ("_first", "_second") if name in known]

    @cached_property
    def web(self) -> Web:
        """An nginx that serves the folder `web.root`."""
        return self._stack.enter_context(Web(self.folder / "web"))

    def _start_sshd(self, name: str) -> PrivateSshd:
        server = self._stack.enter_context(PrivateSshd(self.folder / name))
        self._know(server, server.port)
        return server

    def _machine(
        self, name: str, server: PrivateSshd, base: Path, connection: Connection, port: int | None = None
    ) -> Machine:
        return server.machine(
            name, base, connection=connection, port=port or server.port, known_hosts=self._known_hosts
        )

    def _know(self, server: PrivateSshd, port: int) -> None:
        with self._known_hosts.open("a") as known:
            known.write(server.known_host_line().replace(f":{server.port} ", f":{port} "))

    def _start_agent(self) -> None:
        """Start an SSH agent with the servers' keys, and name it to all programs that are started from now on."""
        socket = self.control / "agent"
        self._stack.enter_context(_running(["ssh-agent", "-D", "-a", os.fspath(socket)]))
        while not socket.exists():
            time.sleep(0.02)
        os.environ["SSH_AUTH_SOCK"] = os.fspath(socket)
        keys = [self._first.client_key, self._second.client_key]
        subprocess.run(["ssh-add", "-q", *keys], check=True, stdin=subprocess.DEVNULL)

    @cached_property
    def _proxy_program(self) -> Path:
        program = self.folder / "delayproxy"
        source = Path(__file__).with_name("delayproxy.c")
        subprocess.run(["cc", "-O2", "-pthread", "-o", program, source], check=True)
        return program

    def _delay(self, server: PrivateSshd) -> int:
        """Return the port of a proxy before a server."""
        words = [os.fspath(self._proxy_program), str(server.port), str(ROUND_TRIP_MS / 2)]
        process = self._stack.enter_context(_running(words))
        assert process.stdout is not None
        port = int(process.stdout.readline())
        self._know(server, port)
        return port


@contextmanager
def _running(words: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program until the context is left. A Ctrl-C in the terminal is for us, who end it in order."""
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0) as process:
        try:
            yield process
        finally:
            process.terminate()


@contextmanager
def staged(needed: int) -> Iterator[Stage]:
    """Provide a stage on memory with room for `needed` bytes; when left, everything is ended and removed.

    Raises: RuntimeError when there is not that much memory: on disk the disk would be measured.
    """
    if (free := free_memory()) < needed:
        raise RuntimeError(f"{needed >> 20} MiB of memory are needed, {free >> 20} are free: take a smaller --size")
    # a short folder for control sockets (a socket's path has at most 107 bytes); the machine's own is private too
    with (
        tempfile.TemporaryDirectory(prefix="dm-bench-", dir="/dev/shm") as folder,
        tempfile.TemporaryDirectory(prefix="dm-bench-", dir="/tmp") as control,
        ExitStack() as stack,
    ):
        yield Stage(Path(folder), Path(control), stack)


def free_memory() -> int:
    """Return the bytes that /dev/shm may still hold."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return min(int(line.split()[1]) * 1024, shutil.disk_usage("/dev/shm").free)
    return shutil.disk_usage("/dev/shm").free


def fill(path: Path, size: int) -> Path:
    """Write `size` random bytes, which nothing can compress."""
    with path.open("xb") as file:
        for start in range(0, size, BLOCK):
            file.write(os.urandom(min(BLOCK, size - start)))
    return path
