"""The catalogue's tables.

Rows are read-only snapshots once their session has ended; they are changed only by the functions of this package,
inside a writing transaction (`Database.write`). A change here needs a migration (`models/migrations`); a test compares
the two.
"""

from __future__ import annotations

from models.tables.access import TokenRecord, WithdrawnPerson
from models.tables.audits import Audit, AuditFinding
from models.tables.base import Base
from models.tables.coordination import Claim, IdempotencyKey, Lease, OutboxMessage
from models.tables.external import Origin, Schedule, ScheduleRun, SealedSecrets
from models.tables.machines import MachineHealth, MachineLimit, MachineSeen
from models.tables.objects import Bundle, BundleMember, DataObject
from models.tables.retention import RetentionMark, RetentionRun
from models.tables.totals import ObjectChange, ObjectTotal
from models.tables.transfers import Transfer, TransferItem, TransferTurn

__all__ = [
    "Audit",
    "AuditFinding",
    "Base",
    "Bundle",
    "BundleMember",
    "Claim",
    "DataObject",
    "IdempotencyKey",
    "Lease",
    "MachineHealth",
    "MachineLimit",
    "MachineSeen",
    "ObjectChange",
    "ObjectTotal",
    "Origin",
    "OutboxMessage",
    "RetentionMark",
    "RetentionRun",
    "Schedule",
    "ScheduleRun",
    "SealedSecrets",
    "TokenRecord",
    "Transfer",
    "TransferItem",
    "TransferTurn",
    "WithdrawnPerson",
]
