"""How a machine's own curl is begun, and whose fault it is when something goes wrong with it: the machine's or the
source's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from datamanager.engine.attempt import Endpoint
from datamanager.errors import DataManagerError, NotSupported
from datamanager.machines import TransportKind
from datamanager.sources.remote_curl.remote_source import Curl, Run
from datamanager.transports import port
from datamanager.transports.port import Session
from datamanager.transports.values import Progress, no_progress


def on_machine(end: Endpoint, progress: Progress = no_progress) -> Run | None:
    """Return how a curl is begun on a machine, in a session of its own; None on this host, where the mover fetches."""
    if end.machine.transport is TransportKind.LOCAL:
        return None

    @contextmanager
    def run(config: bytes, authorities: bytes) -> Iterator[Curl]:
        with named(end), end.storage.session() as session:
            with session.curl(config, authorities, progress=progress) as curl:
                yield curl

    return run


def into_file(session: Session, path: str, start: int, progress: Progress) -> Run:
    """Return how a curl is begun in a session that one has already, to write into a file; see the port's `curl`.

    What goes wrong with the machine, and what `progress` raises, comes as OurSide.
    """

    @contextmanager
    def run(config: bytes, authorities: bytes) -> Iterator[Curl]:
        with ExitStack() as stack:
            with ours():
                begun = session.curl(config, authorities, path=path, start=start, progress=progress)
                curl = stack.enter_context(begun)
            yield _Watched(curl)

    return run


class OurSide(Exception):
    """The machine failed, or we are to stop: not the source's fault."""

    def __init__(self, error: DataManagerError) -> None:
        super().__init__(error.detail)
        self.error = error


@contextmanager
def ours() -> Iterator[None]:
    """Mark what is raised as not the source's fault."""
    try:
        yield
    except DataManagerError as error:
        raise OurSide(error) from error


@contextmanager
def named(end: Endpoint) -> Iterator[None]:
    """Name the machine that can't fetch."""
    try:
        yield
    except NotSupported as error:
        raise NotSupported(f"{end.machine.name} can't fetch by itself (options.fetch): {error.detail}") from error


class _Watched:
    """A curl whose troubles with the machine are marked as such; see the port's Curl."""

    def __init__(self, curl: port.Curl) -> None:
        self._curl = curl

    def head(self, patience: float) -> bytes:
        with ours():
            return self._curl.head(patience)

    def same(self, count: int) -> bool:
        with ours():
            return self._curl.same(count)

    def store(self, most: int) -> None:
        with ours():
            self._curl.store(most)

    def send(self, most: int) -> Iterator[bytes]:
        with ours():
            yield from self._curl.send(most)

    @property
    def end(self) -> port.CurlEnd | None:
        return self._curl.end
