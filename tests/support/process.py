"""A real program run by the tests: its own session, its output in a file, and gone when the tests are gone."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

POLL = 0.05
"""Seconds between two looks at a starting or ending program."""


class Process:
    """One program and everything that it starts; they share a session, so none of them can be missed.

    `user` (only as root) is the account that it runs under; some servers refuse to run as root.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        log: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        user: str | None = None,
    ) -> None:
        self.argv = list(argv)
        self.log = log
        self.env = None if env is None else dict(env)
        self.cwd = cwd
        self.user = user
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the program; return at once."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.env,
                cwd=self.cwd,
                user=self.user,
                group=self.user,
                extra_groups=None if self.user is None else [],
                start_new_session=True,
            )
        _reaper().watch(self._process.pid)

    @property
    def pid(self) -> int:
        """The program's own pid, which is its session's id too."""
        if self._process is None:
            raise RuntimeError(f"{self.argv[0]} was not started")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the program itself has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def returncode(self) -> int | None:
        """The exit status, None while it runs."""
        return None if self._process is None else self._process.poll()

    def wait_until(self, ready: Callable[[], bool], timeout: float) -> None:
        """Wait until `ready` says so.

        Raises: RuntimeError with the end of the log if the program ends first, or after `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        while not ready():
            if not self.running:
                raise RuntimeError(f"{self.argv} ended with {self.returncode}:\n{self.tail()}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.argv} is not ready after {timeout} s:\n{self.tail()}")
            time.sleep(POLL)

    def stop(self, *, signum: signal.Signals = signal.SIGTERM, timeout: float = 60.0) -> int | None:
        """Ask the program to end; after `timeout` seconds kill all of it. Return its exit status. Idempotent."""
        if self._process is None:
            return None
        if self.running:
            self._process.send_signal(signum)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout)
        return self.kill()

    def kill(self) -> int | None:
        """Kill the program and all that it started, at once. Return its exit status. Idempotent."""
        if self._process is None:
            return None
        process, self._process = self._process, None
        kill_session(process.pid)
        status = process.wait()
        _reaper().forget(process.pid)
        return status

    def members(self, *words: str) -> list[int]:
        """Return the pids of its session whose command line has one of `words` (all, without words)."""
        found = session_members(self.pid)
        return [pid for pid in found if any(word in command_line(pid) for word in words)] if words else found

    def tail(self, characters: int = 6000) -> str:
        """Return the end of what it printed."""
        return self.log.read_text(errors="replace")[-characters:] if self.log.exists() else ""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()


def clean_environment(**extra: str) -> dict[str, str]:
    """Return this process's environment without what would steer the Data Manager or Prefect, plus `extra`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DM_", "PREFECT_", "RABBITMQ_"))}
    return kept | extra


def all_pids() -> list[int]:
    """Return the pids of all processes; by listdir, as `Path.glob` raises for one that ends while it looks."""
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def command_line(pid: int) -> str:
    """Return a process's command line as `ps` shows it; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def open_files(pid: int | None = None) -> list[str]:
    """Return what a process (this one) has open, as its links in /proc say; those closed meanwhile are left out."""
    found = list[str]()
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for name in os.listdir(folder := f"/proc/{pid or 'self'}/fd"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                found.append(os.readlink(f"{folder}/{name}"))
    return found


def children_of(pid: int) -> list[int]:
    """Return the direct children of a process, from /proc."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def descendants_of(pid: int) -> list[int]:
    """Return the pids of all processes below one that have not left its tree."""
    found = children_of(pid)
    for child in found:  # grows while it is walked
        found.extend(children_of(child))
    return found


def session_members(session: int) -> list[int]:
    """Return the pids of all living processes of a session, from /proc."""
    found = []
    for pid in all_pids():
        try:
            # pid (name) state ppid pgrp session …; the name may hold anything, the last parenthesis ends it
            stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        state, _, _, member_of = stat.rpartition(")")[2].split()[:4]
        if int(member_of) == session and state != "Z":
            found.append(pid)
    return found


def signal_each(pids: Iterable[int], number: signal.Signals) -> None:
    """Send a signal to each process that is still there: one may end because another one was killed.

    After SIGSTOP none of their threads runs any more: one that waits for a core may work until it gets the signal.
    """
    told = list(pids)
    for pid in told:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
    if number is signal.SIGSTOP:
        while any(set(thread_states(pid)) - set("TtZX") for pid in told):
            time.sleep(0.005)


def thread_states(pid: int) -> str:
    """Return the state of each thread of a process, a letter each, as /proc has them; empty when it is gone."""
    states = ""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for thread in os.listdir(folder := f"/proc/{pid}/task"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                states += Path(f"{folder}/{thread}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    return states


def kill_session(session: int) -> None:
    """Kill every process of a session, also those that are being started meanwhile."""
    while members := session_members(session):
        signal_each(members, signal.SIGKILL)
        time.sleep(0.01)


class _Reaper:
    """A helper process that outlives a killed test run just long enough to end what the run had started."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.process"],
            stdin=subprocess.PIPE,
            start_new_session=True,  # a Ctrl-C in the terminal must not reach it
            cwd=Path(__file__).parents[2],
        )

    def watch(self, session: int) -> None:
        self._tell(f"+{session}")

    def forget(self, session: int) -> None:
        self._tell(f"-{session}")

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n".encode())
        self._process.stdin.flush()


_reapers: list[_Reaper] = []


def _reaper() -> _Reaper:
    if not _reapers:
        _reapers.append(_Reaper())
    return _reapers[0]


def _reap() -> None:
    """Read which sessions live; when the other end of the pipe is gone, kill those that are left."""
    sessions: set[int] = set()
    for line in sys.stdin:
        (sessions.add if line[0] == "+" else sessions.discard)(int(line[1:]))
    for session in sessions:
        kill_session(session)


if __name__ == "__main__":
    _reap()
