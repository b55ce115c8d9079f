"""The query of `GET /DM/info`: filters, sorting and pages, strict about every name and value."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from api.http.query import Cursor, Query, Time, choice, number, one_of, page_size, read_query
from datamanager.domain.location import normalised_prefix
from datamanager.domain.states import ObjectStatus
from datamanager.errors import PathNotAllowed
from datamanager.machines import Machines
from models.objects.catalogue import SORTABLE, Selection

LIMIT_MAX = 10_000
METADATA = "metadata."

_METADATA_KEY = re.compile(r'[^"\\\x00-\x1f]{1,255}')


def _sort(value: str) -> str:
    if value.removeprefix("-") not in SORTABLE:
        raise ValueError(f"must be one of {', '.join(SORTABLE)}, with '-' in front for descending")
    return value


class ObjectQuery(Query):
    """Which objects, in which order."""

    machine: str | None = Field(None, description="Objects on this machine.")
    group: str | None = Field(None, description="Objects of this group.")
    status: Annotated[ObjectStatus | None, one_of(ObjectStatus)] = choice(ObjectStatus)
    originator: str | None = Field(None, description="Objects that came from here.")
    filename: str | None = Field(None, description="A glob over the file's name: `*` any text, `?` any one character.")
    path: str | None = Field(
        None,
        description="Objects in this directory or below, relative to its machine's base_dir "
        "or (with `machine`) absolute.",
    )
    since: Time | None = Field(
        None, description="Registered at this time or later; RFC 3339 with a zone, such as 2026-01-31T12:00:00Z."
    )
    until: Time | None = Field(None, description="Registered before this time; RFC 3339 with a zone.")
    metadata: dict[str, str] = Field(
        default_factory=dict,
        alias="metadata.KEY",
        description="Objects whose metadata has this text under KEY; may be given several times.",
    )
    sort: Annotated[str, BeforeValidator(_sort)] = Field(
        "date_registered",
        description=f"One of {', '.join(SORTABLE)}; descending with `-` in front. Default date_registered.",
    )
    limit: Annotated[int, number(1, LIMIT_MAX)] = page_size("Objects", 1000, LIMIT_MAX)
    cursor: Cursor = None

    @field_validator("path")
    @classmethod
    def _normalised(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None:
            return None
        machines: Machines = (info.context or {})["machines"]
        name = info.data.get("machine") or ""
        # an unknown machine is no error: its objects are still listed
        machine = machines[name] if name in machines else None  # noqa: SIM401 - get raises UnknownMachine
        try:
            return normalised_prefix(machine, value)
        except PathNotAllowed as exc:
            raise ValueError(exc.detail) from None


def selection_of(given: Iterable[tuple[str, str]], machines: Machines) -> Selection:
    """Read query parameters. Raises: InvalidRequest, which names each one that is unknown or wrong."""
    metadata: dict[str, str] = {}
    others: list[tuple[str, str]] = []
    wrong: dict[str, str] = {}
    for name, value in given:
        key = name.removeprefix(METADATA)
        if key == name:
            others.append((name, value))
        elif "\0" in value:
            wrong[name] = "must not contain a NUL character"
        elif _METADATA_KEY.fullmatch(key):
            metadata[key] = value
        else:
            wrong[name] = "a key has 1 to 255 characters without quotes, backslashes and control characters"
    query = read_query(others, ObjectQuery, wrong, machines=machines)
    return Selection(path_prefix=query.path, metadata=metadata, **query.model_dump(exclude={"path", "metadata"}))
