"""An object's metadata: JSON that every database, every client and our own listing can read back."""

from __future__ import annotations

from typing import Any

from datamanager.domain.json_values import DEPTH_MAX, objection
from datamanager.errors import InvalidRequest

__all__ = ["DEPTH_MAX", "require_storable"]


def require_storable(metadata: dict[str, Any]) -> None:
    """Check that the metadata can be stored and read again. Raises: InvalidRequest."""
    wrong = objection(metadata)
    if wrong is not None:
        raise InvalidRequest(f"metadata: {wrong}", {"metadata": wrong})
