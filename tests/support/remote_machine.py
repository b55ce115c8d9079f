"""A machine whose own curl fetches what a download names, attempt by attempt."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from datamanager.domain.states import TransferKind, Verified
from datamanager.engine.attempt import Attempt, Intent, Restart
from datamanager.engine.control import Control
from datamanager.engine.fetching.machine_curl import on_machine
from datamanager.engine.fetching.remote_download import fetch
from datamanager.engine.fetching.replica_fetch import ExpectedBytes, FetchContext
from datamanager.engine.single.probe import probe
from datamanager.engine.single.publish import publish
from datamanager.engine.single.transfer import discard
from datamanager.engine.single.verify import verify
from datamanager.errors import (
    DataManagerError,
)
from datamanager.sources.download_terms import DownloadSources
from datamanager.sources.network.egress_guard import EgressGuard
from tests.support.downloads import LOOPBACK, open_download
from tests.support.ends import Ends
from tests.support.process import command_line
from tests.support.sshd import PrivateSshd

MIB = 2**20
TIMEOUT = 60.0


class Machine:
    """A machine that fetches itself; attempts of one transfer share its checkpoints, as in the flow."""

    def __init__(self, server: PrivateSshd, folder: Path, name: str = "file", **keys: object) -> None:
        self.server = server
        self.folder = folder / "m"
        self.folder.mkdir()
        self.ends = Ends({"m": server.machine("m", self.folder, **keys)}, folder / "run")
        self.job = Attempt(uuid4(), 1, TransferKind.GETEXTERNAL, None, self.ends.end("m", name))
        self.marker: Restart | None = None
        self.begun = 0
        """Bytes that the last attempt went on from."""
        self.control = Control()

    def remember(self, marker: Restart) -> None:
        self.marker = marker

    def opened(
        self, url: str, guard: EgressGuard = LOOPBACK, *, protocol: str = "http", **options: Any
    ) -> DownloadSources:
        terms: dict[str, Any] = {"connect_timeout": 30, "read_timeout": 30}
        run = on_machine(self.job.target)
        options = {"fetch": "remote", **options}
        return open_download(url, protocol, options, guard, max_size=2**30, run=run, insecure=True, **terms)

    def attempt(
        self, fetching: DownloadSources, *, size: int | None = None, limit: int = 2**30, again: bool = False
    ) -> bytes:
        """Fetch once, as another mover's attempt (or as a further try of this one); return the published bytes."""
        self.job = replace(self.job, epoch=self.job.epoch + (not again), restart=self.marker)
        found = probe(self.job, size=size)
        self.begun = self.marker.done if self.marker is not None else 0
        wanted = ExpectedBytes(fetching.terms.limit(limit), size, fetching.checksum())
        assert set(fetching.remote) == set(fetching.sources), "the machine reads all of it"
        moved = fetch(FetchContext(self.job, found, self.control, wanted, self.remember), fetching.remote)
        assert self.control.bytes_done == moved.size
        proof = verify(self.job, found, moved, self.control)
        assert proof.verified is Verified.SHA256
        publish(self.job, found, Intent(proof.size, proof.sha256, 1_600_000_000))
        got = Path(found.final).read_bytes()
        assert proof.sha256 == hashlib.sha256(got).hexdigest()
        assert os.listdir(self.folder) == [os.path.basename(found.final)], "no partial file is left"
        return got

    def got(self, url: str, guard: EgressGuard = LOOPBACK, **options: Any) -> bytes:
        return self.attempt(self.opened(url, guard, **options))

    def refused(self, error: type[DataManagerError], fetching: DownloadSources, **rules: Any) -> DataManagerError:
        """Fetch what must fail, clear up as the flow does, and see that nothing is left, running or stored."""
        with pytest.raises(error) as caught:
            self.attempt(fetching, **rules)
        self.require_nothing()
        return caught.value

    def require_nothing(self) -> None:
        assert not self.curls()
        discard(self.job, probe(replace(self.job, restart=None)))
        assert not os.listdir(self.folder)

    def curls(self, patience: float = TIMEOUT) -> list[str]:
        """Return the command lines of what a fetch starts, as far as it still runs after a while."""
        deadline = time.monotonic() + patience
        while left := [line for line in map(command_line, self.server.descendants()) if _is_ours(line)]:
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
        return left

    def running(self) -> list[int]:
        """Return the pids of the curls that run now."""
        return [pid for pid in self.server.descendants() if command_line(pid).startswith("curl ")]

    def part_size(self) -> int:
        sizes: list[int] = []
        for path in self.folder.glob(".*.dmpart"):
            with contextlib.suppress(FileNotFoundError):  # renamed or removed in this moment
                sizes.append(path.stat().st_size)
        return max(sizes, default=0)


def _is_ours(line: str) -> bool:
    return line.split(" ")[0] in ("curl", "head", "sh", "cmp", "tail", "cat")


def waited(ready: Callable[[], object]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def in_the_middle(machine: Machine, act: Callable[[], object], size: int = MIB) -> threading.Thread:
    """Start a thread that acts once so many bytes are stored."""

    def wait_and_act() -> None:
        waited(lambda: machine.part_size() > size)
        act()

    thread = threading.Thread(target=wait_and_act)
    thread.start()
    return thread
