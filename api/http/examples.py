"""Examples of requests and identifiers, shown in the OpenAPI document."""

from __future__ import annotations

from typing import Any

from datamanager.domain.archive_requests import (
    ActivateManyRequest,
    ActivateRequest,
    ArchiveManyRequest,
    ArchiveRequest,
)
from datamanager.domain.audit_rules import AuditRequest
from datamanager.domain.limits import MachineLimitsRequest, TransferLimitsRequest
from datamanager.domain.recurring import ScheduleRequest, ScheduleRunRequest
from datamanager.domain.requests import (
    CopyManyRequest,
    CopyRequest,
    DeleteRequest,
    GetExternalRequest,
    MoveManyRequest,
    MoveRequest,
    RegisterRequest,
    Request,
    TreeRequest,
)
from datamanager.domain.retention_requests import HoldRequest, LifetimeRequest, RestoreRequest, RetentionRunRequest

UUID_EXAMPLE = "0e4f2b5c-5d3a-4c1b-9f0e-6d2a7c8b9e10"
TASK_EXAMPLE = "7c9b1e7e-2f64-4a53-8a35-1f0b6a4d2c33"

EXAMPLES: dict[type[Request], dict[str, Any]] = {
    RegisterRequest: {"machine": "archer2", "path": "weather", "filename": "june.nc", "size": 1048576, "group": "fire"},
    CopyRequest: {"machine": "cirrus", "dest": "weather/june.nc"},
    MoveRequest: {"machine": "cirrus", "dest": "weather/june.nc"},
    DeleteRequest: {"priority": "low"},
    MachineLimitsRequest: {"bandwidth": "200MB/s", "max_transfers": 4},
    TransferLimitsRequest: {"bandwidth": "50MB/s"},
    AuditRequest: {"machine": "archer2", "scrub_share": 0.05},
    CopyManyRequest: {
        "machine": "cirrus",
        "items": [{"uuid": UUID_EXAMPLE, "dest": "weather/june.nc"}, {"uuid": TASK_EXAMPLE, "dest": "weather/july.nc"}],
    },
    MoveManyRequest: {
        "directory": {"machine": "archer2", "path": "weather"},
        "machine": "cirrus",
        "dest": "weather",
    },
    ArchiveRequest: {"archive_to": "tape", "verify": "checksums"},
    ActivateRequest: {"machine": "cirrus", "dest": "weather/june.nc"},
    ArchiveManyRequest: {"items": [{"uuid": UUID_EXAMPLE}, {"uuid": TASK_EXAMPLE}], "compress": "zstd"},
    ActivateManyRequest: {"items": [{"uuid": UUID_EXAMPLE}, {"uuid": TASK_EXAMPLE, "machine": "cirrus"}]},
    ScheduleRequest: {
        "url": "https://data.example/{date:%Y%m%d}/forecast-{date:%H}.nc",
        "machine": "archer2",
        "path": "weather/{date:%Y}",
        "filename": "forecast-{date:%Y%m%d%H}.nc",
        "interval": "6h",
        "keep": 12,
        "options": {"credential": "weather"},
    },
    ScheduleRunRequest: {"moment": "2026-01-31T06:00:00Z"},
    HoldRequest: {"reason": "figures of a paper", "by": "maria"},
    LifetimeRequest: {"lifetime": "90d"},
    RestoreRequest: {"spare_for": "30d"},
    RetentionRunRequest: {"dry_run": True, "rule": "old forecasts to tape"},
    TreeRequest: {"machine": "archer2", "path": "weather", "group": "fire"},
    GetExternalRequest: {
        "machine": "archer2",
        "path": "weather",
        "filename": "june.nc",
        "url": "https://data.example/june.nc",
        "protocol": "http",
        "group": "fire",
    },
}

MAY_BE_EMPTY = frozenset(
    {DeleteRequest, ArchiveRequest, ActivateRequest, RestoreRequest, RetentionRunRequest, ScheduleRunRequest}
)
"""Requests whose body may be left out."""
