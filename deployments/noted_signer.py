"""Certificates in the audit trail: a signer that wraps the one that signs."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from datamanager.signing.certificate import Certificate, CertificateRequest
from datamanager.signing.signer import Signer
from models.access.trail import TrailOutcome, note
from models.database import Database

SIGNED = "sign certificate"
"""The action of the row that tells of a certificate."""


@dataclass(frozen=True, slots=True)
class NotedSigner:
    """Signs by `signer`, and writes each certificate into the audit trail before it is used: its serial number, its
    login, and the task that it is for. Safe to share between threads.
    """

    signer: Signer
    database: Database

    @property
    def public_line(self) -> str:
        """The authority's public half. Raises: as `Signer.sign`."""
        return self.signer.public_line

    def sign(self, request: CertificateRequest) -> Certificate:
        """Return a certificate. Raises: as `Signer.sign`; CatalogueUnavailable: what can't be recorded is not used."""
        certificate = self.signer.sign(request)
        with self.database.write() as session:
            note(
                session,
                SIGNED,
                TrailOutcome.DONE,
                transfer_id=_task(request),
                subject=request.key_id,
                acted_as=request.principal,
                certificate=str(certificate.serial),
            )
        return certificate


def _task(request: CertificateRequest) -> UUID | None:
    """Return the task of a key id, `dm:TASK:PERSON`; None for other work."""
    try:
        return UUID(request.key_id.split(":")[1])
    except (IndexError, ValueError):
        return None
