"""Secrets of requests in the catalogue: sealed, in a row of their own, which goes with the transfer's end."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import unquote
from uuid import UUID, uuid4

import pytest
from sqlalchemy import delete, select

from datamanager.domain.requests import GetExternalRequest
from datamanager.domain.states import TransferKind
from datamanager.errors import DestinationExists, DownloadFailed, InternalError, InvalidRequest, NotSupported
from datamanager.sealing import Sealer
from datamanager.sources.terms.request_secrets import joined
from deployments.amqp.submission import Call, enter
from models import housekeeping, submission
from models.access.visibility import ALL
from models.database import Database
from models.objects.catalogue import Facts
from models.submission import SealedRequest, TransferRequest, prepare
from models.tables import Base, IdempotencyKey, SealedSecrets, Transfer
from models.transfers import cancel_pause, outcomes, queue
from models.transfers.lookup import keep_secrets, request_of, sealed_of
from tests.support.bookkeeping import LEASE, MACHINES, begin, get_transfer, submit

SECRET = "hunter2-5ecret"
OPTIONS: dict[str, Any] = {"password": SECRET, "username": "bob", "headers": {"X-Key": SECRET}}
URL = f"https://data.example/x?token={SECRET}"
QUERY = f"https://data.example/x?station={SECRET}"
"""Nothing says that it is one."""


@pytest.fixture
def sealer(tmp_path: Path) -> Sealer:
    return Sealer(tmp_path / "secrets.key", made_here=True)


def wanted(name: str = "x", **fields: Any) -> GetExternalRequest:
    return GetExternalRequest(**{"machine": "beta", "filename": name, "url": URL, "options": OPTIONS} | fields)


def asked(database: Database, sealer: Sealer, name: str = "x") -> UUID:
    return submit(database, prepare(TransferRequest(TransferKind.GETEXTERNAL, wanted(name), grant=None), sealer=sealer))


def everything(database: Database) -> str:
    """Return all rows of all tables as one text."""
    with database.read() as session:
        return repr([[tuple(row) for row in session.execute(select(table))] for table in Base.metadata.sorted_tables])


def blobs(database: Database) -> int:
    with database.read() as session:
        return len(session.scalars(select(SealedSecrets)).all())


@pytest.mark.dialect
def test_no_row_has_the_secret_and_the_mover_gets_it_back(database: Database, sealer: Sealer) -> None:
    task = asked(database, sealer)
    assert SECRET not in everything(database)
    begin(database, task)
    assert SECRET not in everything(database)
    row = get_transfer(database, task)
    kept = request_of(row)
    assert isinstance(kept, GetExternalRequest)
    assert kept.options == {"password": "***", "username": "bob", "headers": {"X-Key": "***"}}
    with database.read() as session:
        blob = sealed_of(session, task)
    assert blob is not None
    assert joined(kept, sealer.open(blob)) == wanted()


def test_unsealed_secrets_are_never_stored(database: Database) -> None:
    with pytest.raises(InternalError, match="secrets were not sealed"):
        submit(database, SealedRequest(TransferKind.GETEXTERNAL, wanted(), grant=None))
    assert blobs(database) == 0
    assert SECRET not in everything(database)


def test_what_is_refused_leaves_no_secret(database: Database, sealer: Sealer) -> None:
    asked(database, sealer)
    with pytest.raises(DestinationExists):
        asked(database, sealer)
    assert blobs(database) == 1


@pytest.mark.dialect
@pytest.mark.parametrize("end", ["complete", "error", "cancelled in the queue", "reaped"])
def test_the_secrets_go_with_the_end(database: Database, sealer: Sealer, end: str) -> None:
    task, other = asked(database, sealer), asked(database, sealer, "other")
    assert blobs(database) == 2
    if end == "cancelled in the queue":
        with database.write() as session:
            cancel_pause.cancel(session, task, ALL, "nobody wants it")
    else:
        hold = begin(database, task)
        with database.write() as session:
            if end == "complete":
                outcomes.complete_getexternal(session, hold, Facts(5), "https://data.example/x")
            elif end == "error":
                outcomes.fail(session, hold, DownloadFailed("404"))
            else:
                queue.requeue(session, hold)  # not an end: the next mover needs them
    with database.read() as session:
        left = set(session.scalars(select(SealedSecrets.transfer_id)))
    assert left == ({task, other} if end == "reaped" else {other})
    assert (get_transfer(database, task).ended is None) == (end == "reaped")
    assert SECRET not in everything(database)


@pytest.mark.dialect
def test_housekeeping_removes_what_should_not_be_there(database: Database, sealer: Sealer) -> None:
    from datamanager.settings import Settings

    task = asked(database, sealer)
    with database.write() as session:
        keep_secrets(session, uuid4(), sealer.seal({}))  # of a transfer that is gone
        done = submit_done(session, sealer)
        keep_secrets(session, done, sealer.seal({}))  # of one that has ended
    assert blobs(database) == 3
    with database.write() as session:
        gone = housekeeping.tidy(session, Settings(), broker=False)
    assert gone.secrets == 2
    with database.read() as session:
        assert list(session.scalars(select(SealedSecrets.transfer_id))) == [task]


def submit_done(session: Any, sealer: Sealer) -> UUID:
    """Make a transfer that has ended."""
    request = TransferRequest(TransferKind.GETEXTERNAL, wanted("done"), grant=None)
    row = submission.submit(session, MACHINES, prepare(request, sealer=sealer))
    (hold,) = queue.take(session, "mover", LEASE, 1, only=row.id)
    queue.begin(session, hold, uuid4())
    outcomes.fail(session, hold, DownloadFailed("404"))
    return row.id


# --- messages --------------------------------------------------------------------------------------------------------


def call(**data: Any) -> Call:
    fields = {"machine": "beta", "filename": "x", "url": "https://data.example/x", **data}
    return Call("/tests", str(uuid4()), TransferKind.GETEXTERNAL, fields, "f" * 64)


@pytest.mark.parametrize("options", [OPTIONS, {"headers": {"A": SECRET}}, {"unheard-of": SECRET}])
def test_secrets_in_messages_are_refused_by_name(database: Database, sealer: Sealer, options: dict[str, Any]) -> None:
    event = enter(database, MACHINES, call(options=options), sealer=sealer)
    assert event["type"] == "dm.request.refused"
    assert event["data"]["code"] == (InvalidRequest if "unheard-of" in options else NotSupported).code
    for name in options.keys() - {"username"}:
        assert f"options.{name}" in event["data"]["detail"]
    assert "options.username" not in event["data"]["detail"]
    assert SECRET not in everything(database)
    with database.read() as session:
        assert session.scalars(select(Transfer)).all() == []


def test_a_credential_and_a_query_are_accepted_in_messages(database: Database, sealer: Sealer) -> None:
    event = enter(database, MACHINES, call(url=QUERY, options={"credential": "site"}), sealer=sealer)
    assert event["type"] == "dm.request.accepted"
    assert SECRET not in everything(database)
    assert blobs(database) == 1
    row = get_transfer(database, UUID(event["data"]["task"]))
    assert row.request["options"] == {"credential": "site"}


@pytest.mark.parametrize("name", ["token", "X-Amz-Signature", "api%5Fkey", "Password", "sig"])
def test_a_parameter_that_holds_a_secret_is_refused_in_messages(database: Database, sealer: Sealer, name: str) -> None:
    event = enter(database, MACHINES, call(url=f"https://data.example/x?v=1&{name}={SECRET}"), sealer=sealer)
    assert event["data"]["code"] == NotSupported.code
    assert unquote(name) in event["data"]["detail"]
    assert SECRET not in everything(database)


def test_a_missing_key_refuses_the_message_and_says_so(database: Database, tmp_path: Path) -> None:
    event = enter(database, MACHINES, call(url=QUERY), sealer=Sealer(tmp_path / "none", made_here=False))
    assert event["data"]["code"] == "secrets_unreadable"
    with database.write() as session:
        session.execute(delete(IdempotencyKey))
    assert SECRET not in everything(database)
