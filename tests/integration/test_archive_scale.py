"""Five thousand objects into bundles and back, machines reached by SSH, and what one flipped bit costs: its member."""

from __future__ import annotations

import os
import random
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest

from datamanager.domain.location import Place
from datamanager.domain.requests import RegisterRequest
from datamanager.errors import DataManagerError
from datamanager.machines import Machines
from datamanager.settings import load_settings
from datamanager.sources.network.egress_guard import EgressGuard
from datamanager.transports.factory import Storages
from flows.cleanup.leftovers import reclaim
from flows.runtime.services import Services
from models.archive import bundles
from models.database import Database
from models.objects.catalogue import Facts, register_object
from tests.contract.test_transport import NAMES
from tests.support.bundles import MIB, flip
from tests.support.bundling import bundle_file, done, folder, row_of, status
from tests.support.sshd import PrivateSshd

LARGE, MEDIUM, SMALL, TINY = 3, 20, 200, 4777
"""Objects of 64 MiB, of 1 to 8 MiB, up to 512 KiB and up to 32 KiB: 400 MiB in all."""
MTIME = 1_500_000_000
STEP = 4099


class Contents:
    """What is in each file: a part of the same random bytes that begins where no other one does."""

    def __init__(self) -> None:
        rng = random.Random(5)
        sizes = [1, 511, 512, 513, *(rng.randint(1, 32 * 1024) for _ in range(TINY - 4))]
        sizes += [rng.randint(1, 512 * 1024) for _ in range(SMALL)]
        sizes += [rng.randint(MIB, 8 * MIB) for _ in range(MEDIUM)] + [64 * MIB] * LARGE
        rng.shuffle(sizes)
        self.sizes = sizes
        self._bytes = memoryview(os.urandom(64 * MIB + STEP * len(sizes)))

    def __getitem__(self, number: int) -> memoryview:
        return self._bytes[STEP * number :][: self.sizes[number]]


@pytest.fixture
def parts(database: Database, sshd_pair: tuple[PrivateSshd, PrivateSshd]) -> Iterator[Services]:
    """A mover's parts over a real catalogue and two SSH servers. The files are gone afterwards."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for machine in ("here", "tape"):
            (root / machine).mkdir()
        here, tape = sshd_pair
        machines = Machines(
            {
                "here": here.machine("here", root / "here"),
                "tape": tape.machine("tape", root / "tape", archive=True),
            }
        )
        storages = Storages(machines, root / "run")
        settings = load_settings(home=root / "home")
        yield Services(settings, machines, database, storages, EgressGuard(()), "mover", notify=lambda _: None)
        storages.close()


@pytest.mark.slow
@pytest.mark.parametrize("migrated_url", ["sqlite"], indirect=True)
def test_five_thousand_there_and_back_and_one_bit_costs_one_object(parts: Services) -> None:
    contents = Contents()
    paths = hostile_paths(len(contents.sizes))
    uuids = registered(parts, paths, contents)
    assert done(parts, "archive", *uuids) == f"{len(uuids)} items done"
    assert statuses(parts, uuids) == {"ARCHIVED": len(uuids)}
    assert files_below(folder(parts, "here")) == 0

    small = next(number for number, size in enumerate(contents.sizes) if 1000 < size < 512 * 1024)
    large = contents.sizes.index(64 * MIB)
    hit = {number: damage(parts, uuids[number]) for number in (small, large)}
    for number in hit:
        refused = done(parts, "activate", uuids[number])
        assert isinstance(refused, DataManagerError)
        assert refused.code == "checksum_mismatch"
    assert files_below(folder(parts, "here")) == 0

    outcome = done(parts, "activate", *uuids)
    assert isinstance(outcome, DataManagerError)
    assert outcome.detail.startswith(f"2 of {len(uuids)} items failed, first: checksum_mismatch")
    for number, path in enumerate(paths):
        if number in hit:
            assert status(parts, uuids[number]) == "ARCHIVED"
            continue
        file = folder(parts, "here") / path
        assert file.read_bytes() == contents[number], path
        assert file.stat().st_mtime == MTIME
    assert statuses(parts, uuids) == {"ACTIVE": len(uuids) - 2, "ARCHIVED": 2}
    assert files_below(folder(parts, "here")) == len(uuids) - 2

    reclaim(parts)
    left = {file for file in folder(parts, "tape").rglob("*") if file.suffix == ".tar"}
    assert left == set(hit.values()), "a bundle that is still needed stays, and no other"


def hostile_paths(count: int) -> list[str]:
    """Name so many files, in directories of a few each."""
    names = [raw.decode() for raw in NAMES if raw.decode(errors="ignore").encode() == raw]  # what JSON can carry
    return [f"in/{number // len(names)}/{names[number % len(names)]}" for number in range(count)]


def registered(parts: Services, paths: list[str], contents: Contents) -> list[UUID]:
    """Write files and register them."""
    uuids = []
    with parts.database.write() as session:
        for number, path in enumerate(paths):
            file = folder(parts, "here") / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(contents[number])
            os.utime(file, (MTIME, MTIME))
            request = RegisterRequest(filename=file.name, path=os.path.dirname(path), machine="here")
            uuids.append(register_object(session, request, Place("here", path), Facts(contents.sizes[number]), by=None))
    return uuids


def statuses(parts: Services, uuids: list[UUID]) -> dict[str, int]:
    return Counter(status(parts, uuid) for uuid in uuids)


def files_below(directory: Path) -> int:
    return sum(len(names) for _, _, names in os.walk(directory))


def damage(parts: Services, uuid: UUID) -> Path:
    """Flip one bit in the middle of an archived object; return its bundle."""
    with parts.database.read() as session:
        _, member = bundles.members_of(session, [uuid])[uuid]
    assert member.size == row_of(parts, uuid).size
    flip(bundle_file(parts, uuid), member.offset + member.size // 2)
    return bundle_file(parts, uuid)
