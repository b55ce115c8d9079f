"""The sealed secrets of transfers: written in the transaction that makes the transfer, deleted in the one that ends it.

What is sealed here only `datamanager.sealing` opens.
"""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from models.database import affected, now
from models.tables import SealedSecrets, Transfer


def keep(session: Session, transfer: UUID, blob: str) -> None:
    """Keep the sealed secrets of a transfer that this transaction makes."""
    session.add(SealedSecrets(transfer_id=transfer, blob=blob, created=now(session)))


def sealed_of(session: Session, transfer: UUID) -> str | None:
    """Return the sealed secrets of a transfer; None when it has none, or has ended."""
    return session.scalar(select(SealedSecrets.blob).where(SealedSecrets.transfer_id == transfer))


def forget(session: Session, transfer: UUID) -> None:
    """Delete the secrets of a transfer that this transaction ends."""
    session.execute(delete(SealedSecrets).where(SealedSecrets.transfer_id == transfer))


def prune(session: Session, limit: int = 1000) -> int:
    """Delete up to `limit` secrets whose transfer has ended, or is gone; return how many. There should be none."""
    live = select(Transfer.id).where(Transfer.id == SealedSecrets.transfer_id, Transfer.ended.is_(None))
    left = select(SealedSecrets.transfer_id).where(~live.exists()).limit(limit)
    return affected(session, delete(SealedSecrets).where(SealedSecrets.transfer_id.in_(left)))
