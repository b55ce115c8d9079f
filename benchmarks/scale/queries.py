"""The filters of lists of objects that are measured, as parameters of GET /DM/info."""

from __future__ import annotations

from benchmarks.scale.rows import RARE
from models.objects.listing import SORTABLE

ORDERS = [f"{sign}{name}" for name in SORTABLE for sign in ("", "-")]
FILTERS: dict[str, dict[str, str]] = {
    "none": {},
    "machine, of a quarter of all": {"machine": "machine00"},
    "machine, of one in a hundred": {"machine": "machine23"},
    "machine, absent": {"machine": "nowhere"},
    "group, the largest": {"group": "group-000"},
    "group, of one in thousands": {"group": "group-299"},
    "group, two of a million": {"group": RARE},
    "status ACTIVE": {"status": "ACTIVE"},
    "status UNKNOWN": {"status": "UNKNOWN"},
    "machine and status": {"machine": "machine01", "status": "DELETED"},
    "machine and group": {"machine": "machine00", "group": "group-001"},
    "originator": {"originator": "model-05"},
    "originator, absent": {"originator": "nowhere"},
    "since, the last week": {"since": "2025-11-24T00:00:00Z"},
    "until, the first month": {"until": "2024-02-01T00:00:00Z"},
    "filename, one": {"filename": f"tas-{RARE}.nc"},
    "filename tas_2024*": {"filename": "tas_2024*"},
    "filename *_r7_*": {"filename": "*_r7_*"},
    "filename *nowhere*": {"filename": "*nowhere*"},
    "filename, inner, two of a million": {"filename": f"*{RARE}*"},
    "path": {"path": "group-005/exp3"},
    "path and machine": {"path": "group-001", "machine": "machine00"},
    "path, absent, and machine": {"path": "nowhere/at/all", "machine": "machine00"},
    "metadata, of one in twenty": {"metadata.experiment": "exp5"},
    "metadata, two of a million": {"metadata.note": RARE},
    "metadata, absent": {"metadata.note": "nowhere"},
    "two metadata keys": {"metadata.experiment": "exp12", "metadata.member": "7"},
}
