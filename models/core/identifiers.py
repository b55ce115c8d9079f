"""Identifiers of the objects of batches and trees: UUIDs of version 7 (RFC 9562), in the order in which they are made.

New objects lie side by side in every index that has their identifiers, so that a transaction of a thousand changes a
few pages of each, and not a thousand (docs/adr/0025-identifiers-in-order.md). They tell when an object was made, and
nothing else; 62 of their bits are random.
"""

from __future__ import annotations

import os
import time
from uuid import UUID

from sqlalchemy import BigInteger, ColumnElement, String, Uuid, cast, func, literal, literal_column, type_coerce
from sqlalchemy.orm import Session

from models.database import on_postgresql

_BITS = 12
_PARTS = 1 << _BITS
"""Parts of a millisecond that an identifier tells."""
_RANDOM = (1 << 62) - 1


def new_id() -> UUID:
    """Return a new identifier."""
    return new_ids(1)[0]


def new_ids(count: int) -> list[UUID]:
    """Return new identifiers, in order."""
    first, random = _time(), os.urandom(8 * count)
    return [
        _identifier(first + number, int.from_bytes(random[8 * number : 8 * number + 8], "big"))
        for number in range(count)
    ]


def numbered_id(session: Session, number: ColumnElement[int]) -> ColumnElement[UUID]:
    """Return a new identifier for each row of a statement, in the order of the rows' numbers, which begin with 0."""
    when = (literal(_time(), BigInteger) + number).self_group()
    milliseconds = when.bitwise_rshift(literal_column(str(_BITS)))
    part = when.bitwise_and(literal_column(str(_PARTS - 1)))
    if on_postgresql(session):
        told = func.lpad(func.to_hex(milliseconds), 12, "0").concat("7").concat(func.lpad(func.to_hex(part), 3, "0"))
        return cast(told.concat(func.substr(func.replace(cast(func.gen_random_uuid(), String), "-", ""), 17)), Uuid())
    random = literal_column("substr('89ab', 1 + (random() & 3), 1) || substr(lower(hex(randomblob(8))), 2)", String)
    return type_coerce(func.printf("%012x7%03x", milliseconds, part, type_=String).concat(random), Uuid())


def _time() -> int:
    """Return the time in parts of a millisecond since 1970."""
    return time.time_ns() * _PARTS // 1_000_000


def _identifier(when: int, random: int) -> UUID:
    milliseconds, part = divmod(when, _PARTS)
    return UUID(int=milliseconds << 80 | 7 << 76 | part << 64 | 2 << 62 | random & _RANDOM)
