"""The outbox: messages written in the transaction of the change that they report.

The relay (`deployments.amqp.relay`) sends them and marks them; what the broker has not confirmed stays here.
Bodies are CloudEvents 1.0 in JSON (https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import Select, delete, insert, literal, select, update
from sqlalchemy.orm import Session

from datamanager.errors import PathReplaced
from models.database import affected, insert_rows, inserted, now, table_of
from models.many_rows import insert_many, json_of, uuid_text
from models.tables import OutboxMessage, Transfer

REQUESTS_QUEUE = "dm.requests"
EVENTS_EXCHANGE = "dm.events"
SOURCE = "/DM"


def cloud_event(kind: str, subject: UUID, time: datetime, data: dict[str, Any], **extensions: Any) -> dict[str, Any]:
    """Make a CloudEvents 1.0 envelope; `extensions` are further attributes (lower-case letters and digits only)."""
    return _envelope(str(uuid4()), kind, str(subject), time, data) | extensions


def _envelope(event: Any, kind: str, subject: Any, time: datetime, data: dict[str, Any]) -> dict[str, Any]:
    return {
        "specversion": "1.0",
        "id": event,
        "source": SOURCE,
        "type": kind,
        "subject": subject,
        "time": time.isoformat(),
        "datacontenttype": "application/json",
        "data": data,
    }


def post_submitted(session: Session, transfer: Transfer) -> None:
    """Notify the movers of a new transfer (queue `dm.requests`) and post that it is queued, by one statement."""
    body = cloud_event("dm.transfer.requested", transfer.id, transfer.created, {"transfer": str(transfer.id)})
    event, data, extensions = _transfer_event(transfer, "queued", {})
    told = cloud_event(event, transfer.id, transfer.created, data, **extensions)
    messages = (("", REQUESTS_QUEUE, body), (EVENTS_EXCHANGE, event, told))
    rows = [
        {"exchange": exchange, "routing_key": key, "subject": transfer.id, "body": text, "created": transfer.created}
        for exchange, key, text in messages
    ]
    insert_rows(session, OutboxMessage, rows)


def post_transfer_event(session: Session, transfer: Transfer, what: str, data: dict[str, Any]) -> None:
    """Post a transfer's change (`dm.transfer.{what}`), with the next number in the transfer's sequence.

    `transfer` must belong to the session.
    """
    event, data, extensions = _transfer_event(transfer, what, data)
    post_event(session, event, transfer.id, data, **extensions)


def _transfer_event(transfer: Transfer, what: str, data: dict[str, Any]) -> tuple[str, dict[str, Any], dict[str, str]]:
    transfer.sequence += 1
    data = _facts(transfer) | data
    return f"dm.transfer.{what}", data, {"sequence": f"{transfer.sequence:010d}"}


def _facts(transfer: Any) -> dict[str, Any]:
    told = ("kind", "status", "created_by")
    return {"transfer": str(transfer.id)} | {name: getattr(transfer, name) for name in told}


def post_transfer_events(
    session: Session, what: str, changes: Iterable[tuple[Any, dict[str, Any]]], time: datetime
) -> None:
    """Post the same change of many transfers, by one statement. Each is given by its `id`, `kind` and `created_by`, and
    the `status` and `sequence` that it has by this change.
    """
    kind = f"dm.transfer.{what}"
    rows = [
        (row.id, cloud_event(kind, row.id, time, _facts(row) | data, sequence=f"{row.sequence:010d}"))
        for row, data in changes
    ]
    _post_events(session, kind, rows, time)


def post_path_replaced(session: Session, transfer: Transfer, detail: str, item: int | None = None) -> None:
    """Post that a directory was replaced while a transfer, or an item of it, used it (`dm.security.path_replaced`):
    somebody may be trying to get out of a base directory."""
    data = {"transfer": str(transfer.id), "kind": transfer.kind, "item": item, "detail": detail}
    post_event(session, f"dm.security.{PathReplaced.code}", transfer.id, data)


def post_object_event(session: Session, object_id: UUID, what: str, data: dict[str, Any]) -> None:
    """Post an object's change (`dm.object.registered|copied|moved|deleted`)."""
    post_event(session, f"dm.object.{what}", object_id, {"object": str(object_id), **data})


def post_object_events(
    session: Session, what: str, changes: Iterable[tuple[UUID, dict[str, Any]]], time: datetime
) -> None:
    """Post the same change of many objects, by one statement."""
    kind = f"dm.object.{what}"
    rows = [
        (object_id, cloud_event(kind, object_id, time, {"object": str(object_id), **data}))
        for object_id, data in changes
    ]
    _post_events(session, kind, rows, time)


def post_selected_object_events(session: Session, what: str, changes: Select[Any], time: datetime) -> int:
    """Post the first change of the objects that a query finds, by one statement. Its columns are the object's `id`, by
    which the event is known too, and what the event is to say; it also gives the order. Return how many there are.
    """
    kind = f"dm.object.{what}"
    object_id, *told = changes.selected_columns
    named = uuid_text(session, object_id)
    data = {"object": named} | {one.name: one for one in told}
    same = {"exchange": EVENTS_EXCHANGE, "routing_key": kind, "created": time}
    body = json_of(session, _envelope(named, kind, named, time, data))
    columns = (literal(value, table_of(OutboxMessage).c[name].type) for name, value in same.items())
    rows = changes.with_only_columns(object_id, body, *columns)
    return inserted(session, insert(table_of(OutboxMessage)).from_select(["subject", "body", *same], rows))


def _post_events(session: Session, kind: str, rows: Sequence[tuple[UUID, dict[str, Any]]], time: datetime) -> None:
    same = {"exchange": EVENTS_EXCHANGE, "routing_key": kind, "created": time}
    insert_many(session, OutboxMessage, ("subject", "body"), rows, **same)


def post_event(session: Session, kind: str, subject: UUID, data: dict[str, Any], **extensions: Any) -> dict[str, Any]:
    """Post an event (`kind` is the routing key too); return the message's body. `extensions`: see `cloud_event`."""
    time = now(session)
    body = cloud_event(kind, subject, time, data, **extensions)
    session.add(OutboxMessage(exchange=EVENTS_EXCHANGE, routing_key=kind, subject=subject, body=body, created=time))
    return body


def unsent(session: Session, limit: int) -> list[OutboxMessage]:
    """Return the oldest messages that the broker has not confirmed, in order."""
    query = select(OutboxMessage).where(OutboxMessage.sent.is_(None)).order_by(OutboxMessage.id).limit(limit)
    return list(session.scalars(query))


def mark_sent(session: Session, ids: list[int]) -> None:
    """Note that the broker has confirmed these."""
    session.execute(update(OutboxMessage).where(OutboxMessage.id.in_(ids)).values(sent=now(session)))


def prune(session: Session, keep: timedelta, *, broker: bool, limit: int = 1000) -> int:
    """Forget up to `limit` messages older than `keep`, with a broker only those it has confirmed; return how many."""
    old = select(OutboxMessage.id).where(OutboxMessage.created < now(session) - keep).limit(limit)
    if broker:
        old = old.where(OutboxMessage.sent.is_not(None))
    return affected(session, delete(OutboxMessage).where(OutboxMessage.id.in_(old)))
