"""Identifiers of objects are in the order in which they are made, whoever makes them."""

import time
from uuid import RFC_4122, UUID

import pytest
from sqlalchemy import func, select

from models.core.identifiers import new_id, new_ids, numbered_id
from models.database import Database

COUNT = 5000  # more than a millisecond has parts

pytestmark = pytest.mark.dialect


def moment(identifier: UUID) -> int:
    """Return the millisecond that an identifier tells."""
    return identifier.int >> 80


def require_in_order(found: list[UUID], before: float) -> None:
    assert len(set(found)) == len(found)
    assert found == sorted(found)
    assert {(one.version, one.variant) for one in found} == {(7, RFC_4122)}
    assert int(before * 1000) <= moment(found[0]) <= moment(found[-1]) <= int(time.time() * 1000) + 2
    assert len({one.int & (1 << 62) - 1 for one in found}) == len(found), "the rest is random"


def test_new_ids_are_in_order() -> None:
    before = time.time()
    found = new_ids(COUNT)
    require_in_order(found, before)
    time.sleep(0.005)
    assert new_id() > found[-1]
    assert new_ids(0) == []


def test_numbered_id_is_in_the_order_of_the_numbers(database: Database) -> None:
    with database.read() as session:
        numbers = func.generate_series(0, COUNT - 1).table_valued("value").render_derived().c.value
        if not database.is_postgresql:  # which has it in its shell only
            numbers = func.json_each(str([*range(COUNT)])).table_valued("value").c.value
        before = time.time()
        found = list(session.scalars(select(numbered_id(session, numbers)).order_by(numbers)))
        require_in_order(found, before)
