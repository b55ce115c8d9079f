"""The last proof: every member read back from the archive. (htar's `-Hverify=paranoid`)"""

from __future__ import annotations

from datamanager.domain.archive.bundle_model import Manifest
from datamanager.engine.attempt import Endpoint
from datamanager.engine.bundles.format.layout import Layout
from datamanager.engine.bundles.reading.stored_bundle import StoredBundle
from datamanager.engine.bundles.writing.digests import BundleDigest
from datamanager.engine.control import Control
from datamanager.errors import ChecksumMismatch


def require_members(end: Endpoint, path: str, manifest: Manifest, layout: Layout, control: Control) -> None:
    """Read the bundle at `path` of its machine and compare every member. Raises: ChecksumMismatch."""
    stored = StoredBundle(path, manifest.bundle, manifest.frames)
    digest = BundleDigest(layout)
    with end.storage.session() as session, stored.open(session) as reader:
        for block in reader.blocks(0, layout.size):
            digest.update(block)
            control.check()
    if not digest.complete:
        raise ChecksumMismatch(f"{end.place}: shorter than when it was stored")
    for member, sha256 in zip(manifest.members, digest.sums, strict=True):
        if sha256 != member.sha256:
            raise ChecksumMismatch(f"{end.place}: {member.name}: sha256 {sha256} is stored, {member.sha256} was read")
