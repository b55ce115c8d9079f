"""Who may have what beside whom: the claims' table as a matrix."""

from __future__ import annotations

from itertools import product
from uuid import UUID, uuid4

import pytest

from datamanager.domain.states import ObjectStatus
from datamanager.errors import (
    DestinationExists,
    InternalError,
    NoSpace,
    ObjectArchived,
    ObjectBusy,
    ObjectDeleted,
    ObjectNotFound,
    ObjectUnknown,
    UnknownMachine,
)
from models.access.visibility import ALL
from models.database import Database
from models.objects.catalogue import get_object as find_object
from models.objects.claims import free_place_of_object, give_place_to_object, give_places_to_transfer
from models.transfers import outcomes
from tests.support.bookkeeping import begin, claims, get_object, order, place, register, snapshot, submit

pytestmark = pytest.mark.dialect

KINDS = {"copy": "reader", "move": "writer", "delete": "writer"}


def set_status(database: Database, object_id: UUID, status: ObjectStatus) -> None:
    """Do what a later issue's archive and audit will do: change the status and free the place."""
    with database.write() as session:
        obj = find_object(session, object_id, ALL)
        obj.status = status.value
        free_place_of_object(session, obj.id)


def test_readers_share_and_writers_exclude(database: Database) -> None:
    for first, second in product(KINDS, KINDS):
        pair = f"{first}-{second}"
        source = register(database, pair)
        submit(database, order(first, source, f"{pair}/one"))
        before = snapshot(database)
        if KINDS[first] == KINDS[second] == "reader":
            others = claims(database)
            submit(database, order(second, source, f"{pair}/two"))
            assert sorted(mode for mode, *_ in claims(database) - others) == ["place", "read"]
        else:
            with pytest.raises(ObjectBusy):
                submit(database, order(second, source, f"{pair}/two"))
            assert snapshot(database) == before, pair


@pytest.mark.parametrize("kind", ["register", "copy", "move", "getexternal"])
@pytest.mark.parametrize("holder", ["object", "transfer", "itself"])
def test_a_held_place_is_refused(database: Database, kind: str, holder: str) -> None:
    source = register(database, "source")
    if holder == "object":
        register(database, "taken")
    elif holder == "transfer":
        submit(database, order("getexternal", dest="taken", machine="alpha"))
    wanted = "source" if holder == "itself" else "./taken"
    before = snapshot(database)
    with pytest.raises(DestinationExists):
        if kind == "register":
            register(database, wanted)
        else:
            submit(database, order(kind, source, wanted, "alpha"))
    assert snapshot(database) == before


def test_the_same_path_on_another_machine_is_another_place(database: Database) -> None:
    register(database, "a", "alpha")
    register(database, "a", "beta")
    assert {claim[1] for claim in claims(database)} == {"alpha:a", "beta:a"}


def test_places_compare_by_case_and_by_bytes(database: Database) -> None:
    for path in ("a", "A", "ä", "a\u0308", "a ", "%", "_"):
        register(database, path)
    assert len(claims(database)) == 7


@pytest.mark.parametrize("kind", ["copy", "move", "getexternal"])
def test_the_place_of_an_ended_transfer_is_free(database: Database, kind: str) -> None:
    source = register(database, "source")
    transfer = submit(database, order(kind, source, "wanted"))
    with pytest.raises(DestinationExists):
        register(database, "wanted", "beta")
    hold = begin(database, transfer)
    with database.write() as session:
        outcomes.fail(session, hold, NoSpace("full"))
    assert claims(database) == {("place", "alpha:source", source, None)}
    register(database, "wanted", "beta")
    submit(database, order("move", source, "elsewhere"))  # and the object is free


@pytest.mark.parametrize("status", [ObjectStatus.ARCHIVED, ObjectStatus.DELETED, ObjectStatus.UNKNOWN])
def test_only_active_objects_hold_a_place(database: Database, status: ObjectStatus) -> None:
    gone = register(database, "a")
    set_status(database, gone, status)
    assert claims(database) == set()
    register(database, "a")


@pytest.mark.parametrize(
    ("status", "kind", "error"),
    [
        (ObjectStatus.DELETED, "copy", ObjectDeleted),
        (ObjectStatus.DELETED, "move", ObjectDeleted),
        (ObjectStatus.DELETED, "delete", ObjectDeleted),
        (ObjectStatus.ARCHIVED, "copy", ObjectArchived),
        (ObjectStatus.ARCHIVED, "move", ObjectArchived),
        (ObjectStatus.ARCHIVED, "delete", None),
        (ObjectStatus.UNKNOWN, "copy", ObjectUnknown),
        (ObjectStatus.UNKNOWN, "move", ObjectUnknown),
        (ObjectStatus.UNKNOWN, "delete", None),
        (ObjectStatus.ACTIVE, "copy", None),
    ],
)
def test_what_each_status_allows(
    database: Database, status: ObjectStatus, kind: str, error: type[Exception] | None
) -> None:
    source = register(database, "a")
    if status is not ObjectStatus.ACTIVE:
        set_status(database, source, status)
    before = snapshot(database)
    if error is None:
        submit(database, order(kind, source, "b"))
        return
    with pytest.raises(error):
        submit(database, order(kind, source, "b"))
    assert snapshot(database) == before


def test_deleting_an_unknown_object_spares_the_file_of_another(database: Database) -> None:
    lost = register(database, "a")
    set_status(database, lost, ObjectStatus.UNKNOWN)
    register(database, "a")
    with pytest.raises(DestinationExists):
        submit(database, order("delete", lost))


def test_deleting_an_unknown_object_holds_its_place_meanwhile(database: Database) -> None:
    lost = register(database, "a")
    set_status(database, lost, ObjectStatus.UNKNOWN)
    hold = begin(database, submit(database, order("delete", lost)))
    with pytest.raises(DestinationExists):
        register(database, "a")
    with database.write() as session:
        outcomes.complete_delete(session, hold)
    assert get_object(database, lost).status == ObjectStatus.DELETED
    assert claims(database) == set()
    register(database, "a")


def test_unknown_objects_and_machines(database: Database) -> None:
    source = register(database, "a")
    before = snapshot(database)
    with pytest.raises(UnknownMachine):
        submit(database, order("copy", source, "b", "gamma"))
    with pytest.raises(ObjectNotFound):
        submit(database, order("copy", uuid4(), "b"))
    assert snapshot(database) == before


def test_a_place_that_somebody_else_holds_is_never_handed_over(database: Database) -> None:
    owner, other = register(database, "a"), register(database, "b")
    transfer = submit(database, order("copy", owner, "c"))
    before = claims(database)
    with pytest.raises(InternalError), database.write() as session:
        give_places_to_transfer(session, uuid4(), transfer)
    with pytest.raises(InternalError), database.write() as session:
        give_place_to_object(session, place("a"), transfer, other)
    assert claims(database) == before
