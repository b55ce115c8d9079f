"""Audits that read what is stored: the scrub of files, and bundles with their members, on both databases."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from sqlalchemy import select

from models.database import now
from models.tables import Bundle, BundleMember, DataObject
from tests.support.auditing import Plant


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    stat = file.stat()
    file.write_bytes(data)
    os.utime(file, (stat.st_atime, stat.st_mtime))


@pytest.mark.dialect
def test_the_scrub_finds_a_flipped_bit_and_goes_on_with_the_oldest(plant: Plant) -> None:
    objects = {plant.register(f"s/{number}", bytes([number]) * 3000): number for number in range(10)}
    large = plant.register("s/large", b"L" * 2_000_000)
    damaged = next(iter(objects))
    flip(plant.folder / f"s/{objects[damaged]}")
    assert plant.audit().found == set()  # same size, same mtime: only hashing tells
    checked: set[UUID] = set()
    found: set[tuple[str, str]] = set()
    for _ in range(4):
        audited = plant.audit(scrub_share=0.3)
        assert audited.row.scrubbed_objects == 3
        with plant.database.read() as session:
            query = select(DataObject.id).where(DataObject.checked >= audited.row.created)
            now_checked = set(session.scalars(query))
        assert len(now_checked) == 3
        if len(checked) <= 8:
            assert not now_checked & checked, "one was hashed again before others had their turn"
        checked |= now_checked
        found |= audited.found
    assert checked == {*objects, large}
    assert found == {("CHANGED", f"s/{objects[damaged]}")}
    assert plant.get(damaged).verified == "none"
    assert plant.get(large).verified == "sha256"


def test_the_scrub_keeps_to_its_bytes(local: Plant) -> None:
    for number in range(6):
        local.register(f"s/{number}", bytes([number]) * 1000)
    audited = local.audit(scrub_share=1, scrub_bytes=3500)
    assert (audited.row.scrubbed_objects, audited.row.scrubbed_bytes) == (3, 3000)
    assert local.audit(scrub_share=1, scrub_bytes=10).row.scrubbed_objects == 1  # else it would never be hashed
    assert local.audit(scrub_share=1, scrub_bytes=0).row.scrubbed_objects == 0


def seal(plant: Plant, data: bytes, members: int) -> UUID:
    bundle, path = uuid4(), "bundles/2026-01"
    plant.write(f"{path}/{bundle}.tar", data)
    plant.write(f"{path}/{bundle}.manifest.json", b"{}")
    with plant.database.write() as session:
        time = now(session)
        session.add(
            Bundle(
                id=bundle,
                status="SEALED",
                machine="here",
                place=f"{path}/{bundle}.tar",
                pack="tar",
                level="checksums",
                transfer_id=uuid4(),
                size=len(data),
                sha256=hashlib.sha256(data).hexdigest(),
                created=time,
                sealed=time,
                notes={},
            )
        )
        session.flush()
        for _ in range(members):
            where = {"offset": 0, "size": 0, "sha256": "", "mode": 0, "mtime": 0, "source_machine": "a"}
            session.add(BundleMember(bundle_id=bundle, object_id=uuid4(), source_place="b", **where))
    return bundle


@pytest.mark.dialect
def test_bundles_are_looked_at_and_hashed_too(plant: Plant) -> None:
    whole, lost, short, damaged = (seal(plant, f"bundle {n}".encode() * 100, n + 1) for n in range(4))
    plant.register("a/one")
    folder = plant.folder / "bundles/2026-01"
    (folder / f"{lost}.tar").unlink()
    (folder / f"{whole}.manifest.json").unlink()
    (folder / f"{short}.tar").write_bytes(b"short")
    flip(folder / f"{damaged}.tar")
    audited = plant.audit(scrub_share=1)
    below = "bundles/2026-01"
    assert audited.found == {
        ("LOST", f"{below}/{lost}.tar"),
        ("LOST", f"{below}/{whole}.manifest.json"),
        ("CHANGED", f"{below}/{short}.tar"),
        ("CHANGED", f"{below}/{damaged}.tar"),
    }
    assert audited.of(f"{below}/{lost}.tar").expected["members"] == 2
    assert audited.of(f"{below}/{lost}.tar").object_id == lost
    counts = audited.row.counts
    assert (counts["bundles"], counts["lost_bundles"], counts["changed_bundles"]) == (4, 2, 2)
    assert counts["became_unknown"] == 0
    with plant.database.read() as session:
        assert set(session.scalars(select(Bundle.status))) == {"SEALED"}
        hashed = set(session.scalars(select(Bundle.id).where(Bundle.checked.is_not(None))))
    assert hashed == {whole, damaged}


def test_an_archive_that_is_not_mounted_has_lost_no_bundle(local: Plant) -> None:
    """An archive has bundles, and often no object of its own."""
    seal(local, b"a bundle", 1)
    shutil.rmtree(local.folder / "bundles")
    audited = local.audit()
    assert (audited.row.status, audited.row.error_code, audited.rows) == ("ERROR", "remote_error", [])
