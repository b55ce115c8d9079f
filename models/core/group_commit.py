"""Group commit: the changes of several requests in one transaction of SQLite, put on stable storage once for all.

(DeWitt et al., "Implementation techniques for main memory database systems", 1984.) Each change stays its own: it is a
savepoint, so one that fails is undone alone, with the error that it would have had alone. A failure that is the
transaction's (a full disk) undoes it whole, and then each change is made again in a transaction of its own.

PostgreSQL does the same by itself for transactions that commit at the same time, and there changes that wait for each
other's rows must not share one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import structlog
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from datamanager.errors import CatalogueFull
from models.database import Database

HELD = 0.05
"""Seconds after which no further change joins a transaction: other processes write too."""

Change = Callable[[Session], Any]

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a change returned, or the error that undid it."""

    value: Any = None
    error: Exception | None = None


def commit_group(database: Database, changes: Sequence[Change]) -> list[Outcome]:
    """Make changes in their order and commit them; return what became of each once all that was made is committed.

    There may be fewer outcomes than changes: the transaction was long enough then, and the rest is for the next one.
    A change may be called twice, the first time for nothing: what it does besides the session must bear that.

    Raises: CatalogueUnavailable when no transaction could begin, or when it is not known whether it was committed.
    """
    if len(changes) == 1:
        return [_alone(database, changes[0])]
    outcomes = list[Outcome]()
    begun = committing = False
    try:
        with database.connection() as connection:
            begun, end = True, time.monotonic() + HELD
            for change in changes:
                outcomes.append(_apart(connection, change))
                if time.monotonic() > end:
                    break
            committing = True
    except Exception as error:
        if not begun or (committing and not isinstance(error, CatalogueFull)):
            raise  # of a commit that failed otherwise nobody knows whether it was made
        log.warning("group_undone", changes=len(changes), error=type(error).__name__)
        return _one_by_one(database, changes)
    return outcomes


def _apart(connection: Connection, change: Change) -> Outcome:
    """Make a change as a savepoint. Raises: DBAPIError, after which nobody knows what is left of the transaction."""
    # by the driver: SQLAlchemy's own savepoints cost as much as two statements
    driver = cast(Any, connection.connection.driver_connection)
    driver.execute("SAVEPOINT change")
    try:
        with Session(connection, expire_on_commit=False, join_transaction_mode="rollback_only") as session:
            outcome = Outcome(change(session))
            session.flush()
    except DBAPIError:
        raise
    except Exception as error:  # noqa: BLE001  # whatever it is, it is that of this change
        outcome = Outcome(error=error)
        driver.execute("ROLLBACK TO SAVEPOINT change")
    driver.execute("RELEASE SAVEPOINT change")
    return outcome


def _one_by_one(database: Database, changes: Sequence[Change]) -> list[Outcome]:
    outcomes = list[Outcome]()
    for change in changes:
        try:
            outcomes.append(_alone(database, change))
        except Exception as error:  # noqa: BLE001  # none can begin: each of the others would wait as long, in vain
            return outcomes + [Outcome(error=error)] * (len(changes) - len(outcomes))
    return outcomes


def _alone(database: Database, change: Change) -> Outcome:
    """Make a change in a transaction of its own. Raises: CatalogueUnavailable when none could begin."""
    begun = False
    try:
        with database.write() as session:
            session.connection()
            begun = True
            return Outcome(change(session))
    except Exception as error:
        if not begun:
            raise
        return Outcome(error=error)
