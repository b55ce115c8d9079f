"""A web server's file to a machine, without staging it here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.figures.files import one_file
from benchmarks.figures.scale import Scale
from benchmarks.libraries import StockParamiko
from benchmarks.ours import Ours
from benchmarks.race import Claim, Contender, Race
from benchmarks.servers import Stage
from datamanager.machines import VerifyPolicy

OURS, OURS_SHA256, STOCK = "ours", "ours, sha256 at both ends", "requests + paramiko putfo"


@contextmanager
def fetch(stage: Stage, scale: Scale) -> Iterator[Race]:
    """Fetch a URL of an nginx on this host."""
    url = f"{stage.web.url}/file"
    with (
        one_file(stage.web.root / "file", stage.far / "file", scale.size) as file,
        Ours([stage.machine], stage.control) as engine,
        StockParamiko(stage.machine) as stock,
    ):
        there = (stage.machine, "file")
        contenders = [
            Contender(OURS, lambda: engine.fetch(url, there, VerifyPolicy.SIZE), engine.connect),
            Contender(OURS_SHA256, lambda: engine.fetch(url, there, VerifyPolicy.SHA256), engine.connect),
            Contender(STOCK, lambda: stock.fetch(url, file.target), stock.connect),
        ]
        claims = [Claim("HTTP → SFTP without staging", OURS, STOCK, 2.5)]
        yield Race("web", file.megabytes, "MB", contenders, claims, file.reset, file.check, baseline=STOCK)
