"""A supervisor of child processes: starts them, starts them again when they die, stops them in order.

Children stay in the supervisor's session and process group, and they end when it ends, however it ends. Ctrl-C in a
terminal is sent to the whole group; children don't see it (it is blocked in them), so that the order of stopping is the
supervisor's alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

BACKOFF_MIN = 0.5  # seconds until a child that died is started again; doubled each time
BACKOFF_MAX = 30.0
STEADY = 60.0  # seconds that a child must have lived for its next death to count as the first
HURRY = 3.0  # seconds that each child gets to end after a second signal
SILENT = 3.0  # seconds of waiting for a child's end after which that is said
LOG_MAX = 10 * 2**20  # bytes; a log larger than this is put aside when its child is started
LOGS_KEPT = 3
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PR_SET_PDEATHSIG = 1  # prctl(2)


@dataclass(frozen=True)
class Child:
    """What to run. Without a log it writes where the supervisor does. `grace`: seconds between SIGTERM and SIGKILL."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str]
    log: Path | None = None
    grace: float = 10.0
    once: bool = False
    """It ends by itself and is not started again."""
    umask: int = -1
    """Of the files that it makes; -1: the supervisor's."""


class _Running:
    def __init__(self, child: Child, process: subprocess.Popen[bytes]) -> None:
        self.child = child
        self.process: subprocess.Popen[bytes] | None = process
        self.begun = time.monotonic()
        self.failures = 0
        self.due: float | None = None


class Supervisor:
    """Runs children until a signal stops it. To be used from the main thread, which takes the signals.

    `say` prints one line for a person.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._entries: list[_Running] = []
        self._prctl = ctypes.CDLL(None, use_errno=True).prctl
        self._signals = 0
        self._interruptible = False
        self._receiver, self._sender = socket.socketpair()
        for end in (self._receiver, self._sender):
            end.setblocking(False)
        signal.set_wakeup_fd(self._sender.fileno(), warn_on_full_buffer=False)
        for number in STOPPING:
            signal.signal(number, self._asked_to_stop)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # interrupts the loop's sleep

    def start(self, child: Child) -> None:
        """Start a child. They are stopped in the reverse order."""
        self._entries.append(_Running(child, self._spawn(child)))

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Let a signal end the body, which does not look for one. Raises: KeyboardInterrupt."""
        self._interruptible = True
        try:
            if self._signals:
                raise KeyboardInterrupt
            yield
        finally:
            self._interruptible = False

    def pid(self, name: str) -> int | None:
        """Return the pid of a child that runs."""
        return next((entry.process.pid for entry in self._entries if entry.process and entry.child.name == name), None)

    def run(self, tick: Callable[[], float]) -> None:
        """Watch over the children until a signal asks to stop; `tick`, called in between, returns the next delay."""
        while not self._signals:
            for entry in self._entries:
                self._look_after(entry)
            delay, now = tick(), time.monotonic()
            dues = [entry.due - now for entry in self._entries if entry.due is not None]
            self._sleep(max(0.0, min([delay, *dues])))

    def stop(self) -> None:
        """Stop every child, the last one started first: SIGTERM, its grace, SIGKILL. What takes long is said.

        After a second signal each child gets SIGTERM once more and HURRY; after a third one SIGKILL.
        """
        asked = min(1, self._signals)
        for entry in reversed(self._entries):
            process, entry.due = entry.process, None
            if process is None:
                continue
            self._terminate(process, entry.child, entry.child.grace, asked)
            if self._signals > asked:
                self._terminate(process, entry.child, HURRY, asked + 1)
            if process.poll() is None:
                self._say(f"{entry.child.name} did not stop in time; killing it")
                process.kill()
                process.wait()
        self._entries.clear()

    # --- inside ------------------------------------------------------------------------------------------------------

    def _asked_to_stop(self, _number: int, _frame: object) -> None:
        self._signals += 1
        if self._interruptible:
            raise KeyboardInterrupt

    def _terminate(self, process: subprocess.Popen[bytes], child: Child, grace: float, signals: int) -> None:
        """Send SIGTERM; wait until the child has ended, for `grace` seconds, or until more than `signals` came."""
        process.terminate()
        begun = time.monotonic()
        said = False
        while process.poll() is None and (waited := time.monotonic() - begun) < grace and self._signals <= signals:
            if waited > SILENT and not said:
                said = True
                self._say(f"  waiting for {child.name} to end, {grace - waited:.0f} s at most")
            self._sleep(max(0.0, min(0.2, grace - waited)))

    def _sleep(self, seconds: float) -> None:
        """Wait; a signal ends it, also one that came just before."""
        if select.select([self._receiver], [], [], seconds)[0]:
            with contextlib.suppress(BlockingIOError):
                self._receiver.recv(4096)

    def _look_after(self, entry: _Running) -> None:
        child, now = entry.child, time.monotonic()
        if entry.process is not None:
            status = entry.process.poll()
            if status is None:
                return
            entry.process = None
            if child.once:
                return
            entry.failures = 1 if now - entry.begun > STEADY else entry.failures + 1
            pause = min(BACKOFF_MIN * 2 ** (entry.failures - 1), BACKOFF_MAX)
            entry.due = now + pause
            where = f"; log: {child.log}" if child.log else ""
            self._say(f"{child.name} ended ({how(status)}); restarting in {pause:g} s{where}")
        if entry.due is not None and now >= entry.due:
            entry.process, entry.begun, entry.due = self._spawn(child), now, None

    def _spawn(self, child: Child) -> subprocess.Popen[bytes]:
        supervisor, prctl = os.getpid(), self._prctl

        def in_the_child() -> None:
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != supervisor:  # it ended before the line above
                os._exit(1)

        with contextlib.ExitStack() as stack:
            log = stack.enter_context(open_log(child.log)) if child.log else None
            return subprocess.Popen(
                child.argv,
                env=child.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT if log else None,
                umask=child.umask,
                preexec_fn=in_the_child,  # safe: the supervisor has one thread
            )


def how(status: int) -> str:
    """Say how a process ended."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"


def open_log(path: Path) -> BinaryIO:
    """Open a log for appending, private; one that is too large is put aside first (`.1`, `.2`, …)."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size > LOG_MAX:
        names = [path, *(path.with_name(f"{path.name}.{number}") for number in range(1, LOGS_KEPT + 1))]
        for older, newer in zip(names[:0:-1], names[-2::-1], strict=True):
            if newer.exists():
                newer.replace(older)
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600), "ab")
