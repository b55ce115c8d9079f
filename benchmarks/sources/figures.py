"""What is compared, by the name that `--only` takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from benchmarks import programs
from benchmarks.figures.files import MB, one_file
from benchmarks.ours import Ours
from benchmarks.race import Claim, Contender, Figure, Measurement, Outcome, Race, Tell, Timing
from benchmarks.servers import Stage
from datamanager.machines import VerifyPolicy

OURS, OURS_SHA256, CURL = "ours", "ours, sha256 at both ends", "curl | ssh cat"
WANTED = 0.85
WANTED_OF_SEVERAL = 2.0
GROWTH = 32
"""MiB that the process may need more when each download is four times as large."""
LARGER = 4


@dataclass(frozen=True, slots=True)
class Scale:
    """`size` is bytes of the large file; `at_once` downloads of `each` bytes, and of four times as many, are made at
    the same time.
    """

    size: int
    at_once: int
    each: int

    def needed(self) -> int:
        """Bytes of memory for what is fetched, at both ends, and some to spare."""
        return max(2 * self.size, self.at_once * self.each * LARGER + self.each * LARGER) + (1 << 30)


@contextmanager
def https(stage: Stage, scale: Scale) -> Iterator[Race]:
    """Fetch a URL of a TLS nginx on this host to a machine reached by SSH."""
    claim = Claim("HTTPS → SFTP without staging", OURS, CURL, WANTED)
    with _raced(stage, "https", "file", scale.size, claim) as race:
        yield race


@contextmanager
def limited(stage: Stage, scale: Scale) -> Iterator[Race]:
    """The same from an nginx that gives each connection 8 MiB/s, and a file of an eighth of the size."""
    (stage.web.root / "slow").mkdir(exist_ok=True)
    claim = Claim("HTTPS → SFTP, 8 MiB/s for each connection", OURS, CURL, WANTED_OF_SEVERAL)
    with _raced(stage, "limited", "slow/file", scale.size // 8, claim) as race:
        yield race


@contextmanager
def _raced(stage: Stage, name: str, path: str, size: int, claim: Claim) -> Iterator[Race]:
    web = stage.web
    url = f"{web.tls_url}/{path}"
    with (
        one_file(web.root / path, stage.far / "file", size) as file,
        Ours([stage.machine], stage.control) as engine,
    ):
        there = (stage.machine, "file")

        def ours(policy: VerifyPolicy) -> None:
            engine.fetch(url, there, policy, web.certificate)

        contenders = [
            Contender(OURS, lambda: ours(VerifyPolicy.SIZE), engine.connect),
            Contender(OURS_SHA256, lambda: ours(VerifyPolicy.SHA256), engine.connect),
            Contender(CURL, lambda: programs.curl_to_ssh(url, web.certificate, stage.machine, file.target)),
        ]
        yield Race(name, file.megabytes, "MB", contenders, [claim], file.reset, file.check, baseline=CURL)


@dataclass(frozen=True, slots=True)
class Many:
    """Many downloads at once, in a process of their own: its memory must not depend on their size."""

    stage: Stage
    scale: Scale

    def measure(self, rounds: int, tell: Tell) -> Outcome:
        """Fetch small ones, then larger ones, `rounds` times. Raises: CalledProcessError."""
        growths, idles, seconds = [], [], []
        for _ in range(rounds):
            small, large = self._run("small"), self._run("large")
            growths.append((large["peak"] - small["peak"]) / 2**20)
            idles.append((large["peak"] - large["idle"]) / 2**20)
            seconds.append(large["seconds"])
            tell(f"many: at most {idles[-1]:.0f} MiB above idle, {growths[-1]:.1f} MiB more than for small ones")
        ours, amount = f"{self.scale.at_once} downloads at once", self.scale.at_once * self.scale.each * LARGER / MB
        what = f"memory that {LARGER} times larger downloads need more"
        return Outcome(
            (Figure("many", what, ours, "–", GROWTH, tuple(growths), "MiB"),),
            (Timing("many", ours, tuple(seconds), amount, "MB"),),
        )

    def _run(self, name: str) -> dict[str, float]:
        order = {
            "url": f"{self.stage.web.tls_url}/{name}",
            "ca_file": os.fspath(self.stage.web.certificate),
            "target": self.stage.machine.model_dump(mode="json"),
            "control_dir": os.fspath(self.stage.control),
            "count": self.scale.at_once,
        }
        words = [sys.executable, "-m", "benchmarks.sources.many"]
        done = subprocess.run(words, input=json.dumps(order).encode(), stdout=subprocess.PIPE, check=True)
        told: dict[str, float] = json.loads(done.stdout)
        return told


@contextmanager
def many(stage: Stage, scale: Scale) -> Iterator[Many]:
    """Make the files that are fetched."""
    files = {stage.web.root / "small": scale.each, stage.web.root / "large": scale.each * LARGER}
    for path, size in files.items():
        with path.open("wb") as file:
            for start in range(0, size, 1 << 20):
                file.write(os.urandom(min(1 << 20, size - start)))
    try:
        yield Many(stage, scale)
    finally:
        for path in files:
            path.unlink()


GROUPS: dict[str, Callable[[Stage, Scale], AbstractContextManager[Measurement]]] = {
    "https": https,
    "limited": limited,
    "many": many,
}
