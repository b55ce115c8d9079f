"""Files of a tree that become objects, all at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import uuid4

from sqlalchemy.orm import Session

from datamanager.domain.location import Place
from datamanager.domain.requests import TreeRequest
from models.objects.bulk_claims import claim_places
from models.objects.catalogue import Facts, NewRow, add_objects


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file of a tree: its place, its directory as the client would give it, what is known of its bytes, and its
    canonical place (another one than `place` where links lead to it).
    """

    place: Place
    path: str
    facts: Facts
    canonical: Place


def register_files(session: Session, files: Sequence[FoundFile], request: TreeRequest) -> list[NewRow]:
    """Enter the files whose places are free, as `request` describes them, and return them, in the order of `files`.

    Left out are those that a registered object or a transfer under way has already.
    """
    described = request.description, request.originator, request.group, request.metadata
    rows = [NewRow(uuid4(), file.place, file.facts, file.path, *described) for file in files]
    wanted = [(row.place, row.id) for row in rows]
    wanted += [(file.canonical, row.id) for file, row in zip(files, rows, strict=True) if file.canonical != file.place]
    won = claim_places(session, wanted, transfer=None)
    entered = [row for row in rows if row.id in won]
    add_objects(session, entered, "registered")
    return entered
