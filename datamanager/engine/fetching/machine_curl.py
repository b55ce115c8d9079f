"""Starting a machine's own curl, and telling failures of the machine from failures of the source."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from datamanager.engine.attempt import Endpoint
from datamanager.engine.fetching.replica_fetch import MachineFailed, raised_as
from datamanager.errors import NotSupported
from datamanager.machines import TransportKind
from datamanager.sources.network.source_context import RunCurl
from datamanager.transports.port import RunningCurl, Session
from datamanager.transports.values import CurlExit, Progress, no_progress


def on_machine(end: Endpoint, progress: Progress = no_progress) -> RunCurl | None:
    """Return what starts a curl on a machine, in a session of its own; None on this host, where the mover fetches."""
    if end.machine.transport is TransportKind.LOCAL:
        return None

    @contextmanager
    def run(config: bytes, authorities: bytes) -> Iterator[RunningCurl]:
        with (
            named(end),
            end.storage.session() as session,
            session.programs.curl(config, authorities, progress=progress) as curl,
        ):
            yield curl

    return run


def into_file(session: Session, path: str, start: int, progress: Progress) -> RunCurl:
    """Return what starts a curl in this session, to write into a file; see the port's `curl`.

    Failures of the machine, and what `progress` raises, come as MachineFailed.
    """

    @contextmanager
    def run(config: bytes, authorities: bytes) -> Iterator[RunningCurl]:
        with ExitStack() as stack:
            with raised_as(MachineFailed):
                begun = session.programs.curl(config, authorities, path=path, start=start, progress=progress)
                curl = stack.enter_context(begun)
            yield _Watched(curl)

    return run


@contextmanager
def named(end: Endpoint) -> Iterator[None]:
    """Name the machine in the error of one that can't fetch."""
    try:
        yield
    except NotSupported as error:
        raise NotSupported(f"{end.machine.name} cannot download by itself (options.fetch): {error.detail}") from error


class _Watched:
    """A curl whose machine's failures come as MachineFailed; see the port's RunningCurl."""

    def __init__(self, curl: RunningCurl) -> None:
        self._curl = curl

    def head(self, patience: float) -> bytes:
        with raised_as(MachineFailed):
            return self._curl.head(patience)

    def same(self, count: int) -> bool:
        with raised_as(MachineFailed):
            return self._curl.same(count)

    def store(self, most: int) -> None:
        with raised_as(MachineFailed):
            self._curl.store(most)

    def send(self, most: int) -> Iterator[bytes]:
        with raised_as(MachineFailed):
            yield from self._curl.send(most)

    @property
    def end(self) -> CurlExit | None:
        return self._curl.end
