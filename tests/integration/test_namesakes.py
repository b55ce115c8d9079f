"""Where else the catalogue has a file of a name, and places that are provisional."""

from __future__ import annotations

from uuid import uuid4

import pytest

from datamanager.domain.location import Place
from datamanager.errors import DestinationExists
from models.access.visibility import ALL
from models.database import Database, now
from models.objects.catalogue import get_object
from models.objects.namesakes import namesakes
from models.tables import Bundle
from models.transfers.settlement import settle, unsettled
from tests.support.bookkeeping import begin, claims, order, place, register, submit

pytestmark = pytest.mark.dialect


def test_namesakes_are_objects_and_bundles_of_that_name(database: Database) -> None:
    register(database, "proj/june.nc")
    register(database, "proj/june.nc", "beta")
    register(database, "proj/July.nc")
    register(database, "Proj/JUNE.nc")
    bundle = uuid4()
    with database.write() as session:
        session.add(
            Bundle(
                id=bundle,
                machine="beta",
                place=f"bundles/{bundle}.tar",
                pack="tar",
                level="sizes",
                transfer_id=uuid4(),
                created=now(session),
                notes={},
            )
        )
    wanted, stored = place("alias/june.nc"), place(f"alias/{bundle}.manifest.json")
    same = {place("proj/june.nc"), place("proj/june.nc", "beta")}
    manifest = Place("beta", f"bundles/{bundle}.manifest.json")
    with database.read() as session:
        assert set(namesakes(session, [wanted, stored])) == {*same, manifest}
        assert set(namesakes(session, [wanted], folding=["alpha"])) == {*same, place("Proj/JUNE.nc")}
        assert namesakes(session, [place("other/may.nc")]) == []


def test_of_two_provisional_objects_the_first_is_the_others_rival(database: Database) -> None:
    first, second = register(database, "proj/june.nc"), register(database, "alias/june.nc")
    with database.write() as session:
        for uuid in (first, second):
            get_object(session, uuid, ALL).provisional = True
    with database.read() as session:
        objects = get_object(session, first, ALL), get_object(session, second, ALL)
        assert namesakes(session, [place("x/june.nc")], rivals_of=objects[0]) == []
        assert namesakes(session, [place("x/june.nc")], rivals_of=objects[1]) == [place("proj/june.nc")]


def test_settle_claims_the_canonical_place_once(database: Database) -> None:
    uuid = register(database, "link/june.nc")
    with database.write() as session:
        get_object(session, uuid, ALL).provisional = True
    hold = begin(database, submit(database, order("delete", uuid)))
    for _ in range(2):
        with database.write() as session:
            settle(session, hold, uuid, place("proj/june.nc"))
    assert ("place", "alpha:proj/june.nc", uuid, None) in claims(database)
    with database.read() as session:
        assert unsettled(session, [uuid]) == []
    register(database, "proj/july.nc")
    with database.write() as session, pytest.raises(DestinationExists):
        settle(session, hold, uuid, place("proj/july.nc"))
