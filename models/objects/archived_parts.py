"""Parts of bundles that objects need no more, and bundles that are given up: what becomes of archives as objects and
transfers end. Their making is in `models.archive.bundles`.
"""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from datamanager.domain.states import BundleStatus
from models.database import now
from models.tables import Bundle, BundleMember


def release(session: Session, objects: Sequence[UUID]) -> None:
    """Note that objects do not need their parts of bundles any more; a bundle that nobody needs then is UNNEEDED.

    The caller has the objects alone.
    """
    query = select(BundleMember.bundle_id).where(BundleMember.object_id.in_(objects), BundleMember.released.is_(None))
    touched = sorted(set(session.scalars(query)))
    for bundle in touched:  # always in one order, and before members are counted
        session.get_one(Bundle, bundle, with_for_update=True, populate_existing=True)
    mine = update(BundleMember).where(BundleMember.object_id.in_(objects), BundleMember.released.is_(None))
    session.execute(mine.values(released=now(session)))
    needed = select(BundleMember.bundle_id).where(BundleMember.bundle_id.in_(touched), BundleMember.released.is_(None))
    for bundle in set(touched) - set(session.scalars(needed.distinct())):
        session.get_one(Bundle, bundle).status = BundleStatus.UNNEEDED.value


def abandon(session: Session, transfer: UUID, *bundles: UUID) -> None:
    """Give up the bundles of a transfer (or just these) that were not sealed; what there is of them is removed later.

    The caller has the transfer's row locked.
    """
    mine = update(Bundle).where(Bundle.transfer_id == transfer, Bundle.status == BundleStatus.OPEN.value)
    if bundles:
        mine = mine.where(Bundle.id.in_(bundles))
    session.execute(mine.values(status=BundleStatus.ABANDONED.value))
