"""Downloads to a machine through the engine, as the flow does them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from datamanager.domain.states import TransferKind
from datamanager.engine.attempt import Attempt, Found, Intent, Moved, Restart
from datamanager.engine.control import Control
from datamanager.engine.fetching.download import download
from datamanager.engine.fetching.replica_fetch import ExpectedBytes, FetchContext
from datamanager.engine.single.probe import probe
from datamanager.engine.single.publish import publish
from datamanager.engine.single.transfer import discard
from datamanager.engine.single.verify import verify
from datamanager.errors import DataManagerError
from datamanager.machines import Machine
from datamanager.sources.download_terms import DownloadSources
from tests.support.ends import Ends


class Fetcher:
    """Does what the flow does: probe, download, verify, publish; attempts of one transfer share its checkpoints.

    `machine`, with base_dir `m` in `folder`, is this host if not given.
    """

    def __init__(self, folder: Path, machine: Machine | None = None) -> None:
        (folder / "m").mkdir()
        if machine is None:
            machine = Machine.model_validate({"name": "m", "transport": "local", "base_dir": str(folder / "m")})
        self.folder = folder / "m"
        self.ends = Ends({"m": machine}, folder / "run")
        self.job = Attempt(uuid4(), 1, TransferKind.GETEXTERNAL, None, self.ends.end("m", "file"))
        self.marker: Restart | None = None
        self.begun = 0
        """Bytes that the last attempt went on from."""

    def remember(self, marker: Restart) -> None:
        self.marker = marker

    def attempt(self, fetching: DownloadSources, *, size: int | None = None, limit: int = 2**30) -> bytes:
        """Fetch once, as another mover's attempt, and return the published bytes."""
        self.job = replace(self.job, epoch=self.job.epoch + 1, restart=self.marker)
        found = probe(self.job, size=size)
        return self.finish(found, self.transfer(found, fetching, size=size, limit=limit))

    def transfer(
        self, found: Found, fetching: DownloadSources, *, size: int | None = None, limit: int = 2**30
    ) -> Moved:
        """Try the transfer step of an attempt whose ends were probed."""
        self.begun = self.marker.done if self.marker is not None else 0
        terms = fetching.terms
        wanted = ExpectedBytes(terms.limit(limit), size, fetching.checksum(), terms.options.decompress)
        return download(FetchContext(self.job, found, Control(), wanted, self.remember), fetching.sources)

    def finish(self, found: Found, moved: Moved) -> bytes:
        """Verify and publish what was transferred; return the published bytes."""
        proof = verify(self.job, found, moved, Control())
        publish(self.job, found, Intent(proof.size, proof.sha256, 1_600_000_000))
        return (self.folder / "file").read_bytes()

    def until_done(self, fetching: DownloadSources, most: int = 6) -> bytes:
        """Attempt until it works; what fails must be worth another try, and publish nothing."""
        for _ in range(most):
            try:
                return self.attempt(fetching)
            except DataManagerError as error:
                if not error.retryable:
                    raise
                assert not (self.folder / "file").exists()
        raise AssertionError("it never worked")

    def refused(self, error: type[DataManagerError], fetching: DownloadSources, **rules: Any) -> DataManagerError:
        """Fetch what must fail, clear up as the flow does, and see that nothing is left."""
        with pytest.raises(error) as caught:
            self.attempt(fetching, **rules)
        assert not (self.folder / "file").exists()
        discard(self.job, probe(self.job))
        assert not list(self.folder.iterdir())
        return caught.value
