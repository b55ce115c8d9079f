"""Requests that arrive as messages: read, judge, enter into the catalogue. No broker here: bytes in, an answer out.

Messages are CloudEvents 1.0 in JSON, structured mode
(https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/formats/json-format.md). By that specification `source` and
`id` together name a request, so they are its idempotency key: however often it arrives, it is entered once and answered
alike.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid4, uuid5

import orjson
from sqlalchemy.orm import Session

from datamanager.domain.requests import GetExternalRequest, validated
from datamanager.domain.states import TransferKind
from datamanager.errors import CatalogueError, InvalidRequest, RequestError, SecretsUnreadable
from datamanager.machines import Machines
from datamanager.messaging.consuming import DeadLetter
from datamanager.sealing import Sealer
from datamanager.sources.terms.request_secrets import refuse_secrets, secret_names
from datamanager.sources.terms.urls import public_url
from models.core import idempotency
from models.core.outbox import post_event
from models.database import Database
from models.submission import SealedRequest, SourceCheck, TransferRequest, judged, prepare, submit
from models.transfers.lookup import REQUEST_OF_KIND

BODY_MAX = 2**22
"""Bytes of a message: a batch of 10,000 items, unless their paths are long."""
NAME_MAX = 1024
"""Characters of a CloudEvent's `id` and `source`; both are repeated in the answer."""
NOTIFICATION = "dm.transfer.requested"
REQUEST_PREFIX = "dm.request."
ACCEPTED, REFUSED = "dm.request.accepted", "dm.request.refused"
HOLD = timedelta(seconds=30)
KEEP = timedelta(hours=24)

Event = dict[str, Any]
Refusal = RequestError | CatalogueError | SecretsUnreadable


@dataclass(frozen=True, slots=True)
class Call:
    """A workflow system's request, not yet validated."""

    source: str
    id: str
    kind: TransferKind
    data: Any
    fingerprint: str
    """What distinguishes this request from another one of the same source and id."""

    @property
    def key(self) -> str:
        """The idempotency key: of fixed length, whatever the names are."""
        return idempotency.AMQP + _digest([self.source, self.id])


def read_message(body: bytes) -> UUID | Call | DeadLetter:
    """Say what a message is: our notification of a transfer, a workflow system's request, or nothing of use."""
    if len(body) > BODY_MAX:
        return DeadLetter("too_large", f"a message is limited to {BODY_MAX} bytes, this one has {len(body)}")
    try:
        event = orjson.loads(body)
    except orjson.JSONDecodeError as exc:
        return DeadLetter("malformed_body", f"not JSON: {exc}")
    if not isinstance(event, dict) or event.get("specversion") != "1.0":
        return DeadLetter("not_a_cloud_event", "not a CloudEvent 1.0 in structured JSON: specversion is not '1.0'")
    for attribute in ("id", "source", "type"):
        value = event.get(attribute)
        if not isinstance(value, str) or not 0 < len(value) <= NAME_MAX:
            return DeadLetter("not_a_cloud_event", f"{attribute}: must be a string of 1 to {NAME_MAX} characters")
    kind, data = event["type"], event.get("data")
    if kind == NOTIFICATION:
        transfer = _uuid(data.get("transfer")) if isinstance(data, dict) else None
        return transfer or DeadLetter("malformed_body", "data.transfer: must be a transfer's identifier")
    try:
        request = TransferKind(kind.removeprefix(REQUEST_PREFIX)) if kind.startswith(REQUEST_PREFIX) else None
    except ValueError:
        request = None
    if request is None:
        known = ", ".join(REQUEST_PREFIX + known for known in TransferKind)
        return DeadLetter("unknown_type", f"type {kind!r} is unknown; known: {known}")
    try:
        return Call(event["source"], event["id"], request, data, _digest([kind, _without_secrets(data)]))
    except orjson.JSONEncodeError:
        return DeadLetter("malformed_body", "data is nested too deeply")


def enter(
    database: Database, machines: Machines, call: Call, check: SourceCheck | None = None, sealer: Sealer | None = None
) -> Event:
    """Validate a request and enter it; return the answer, a CloudEvent that is also in the outbox for `dm.events`.

    Transfer, answer and idempotency key are one transaction. A request that was answered gets the same answer again.

    `sealer` seals the queries of URLs; options with secrets are refused, and parameters that are called like one.

    Raises: CatalogueUnavailable; nothing was entered then.
    """
    request: SealedRequest | Refusal
    try:
        prepared = _prepared(call, check, sealer)
        with database.read() as session:
            request = judged(session, machines, prepared)
    except (RequestError, CatalogueError, SecretsUnreadable) as exc:
        request = exc
    holder = uuid4().hex
    with database.write() as session:
        try:
            begun = idempotency.begin(session, call.key, call.fingerprint, holder, HOLD, KEEP)
        except RequestError as exc:  # this source and id stand for another request, whose answer stays as it is
            return _post(session, call, exc)
        if begun.answer is not None:
            answer: Event = json.loads(begun.answer.body)
            return answer
        outcome = _submitted(session, machines, request)
        if isinstance(outcome, UUID):
            idempotency.attach(session, call.key, holder, outcome)
        event = _post(session, call, outcome)
        status = 202 if isinstance(outcome, UUID) else 422
        idempotency.store(session, call.key, holder, idempotency.StoredAnswer(status, {}, json.dumps(event)))
        return event


def _prepared(call: Call, check: SourceCheck | None, sealer: Sealer | None) -> SealedRequest:
    if not isinstance(call.data, dict):
        raise InvalidRequest("data: must be an object with the request's fields", {"data": "an object"})
    object_id = None
    if call.kind is not TransferKind.GETEXTERNAL and not call.kind.many:
        object_id = _uuid(call.data.get("uuid"))
        if object_id is None:
            raise InvalidRequest("uuid: must be an object's identifier", {"uuid": "the identifier of an object"})
    own = {"uuid"} if object_id is not None else set()
    given = {name: value for name, value in call.data.items() if name not in own}
    fields = validated(given, REQUEST_OF_KIND[call.kind])
    if isinstance(fields, GetExternalRequest):
        refuse_secrets(fields.options, "in messages, which brokers store", fields.url)
    return prepare(TransferRequest(call.kind, fields, object_id, grant=None), check, sealer)


def _submitted(session: Session, machines: Machines, request: SealedRequest | Refusal) -> UUID | Refusal:
    if not isinstance(request, SealedRequest):
        return request
    try:
        with session.begin_nested():  # a refusal takes back its claims, not the answer
            return submit(session, machines, request).id
    except (RequestError, CatalogueError) as exc:
        return exc


def _post(session: Session, call: Call, outcome: UUID | Refusal) -> Event:
    """Put the answer into the outbox, and return it."""
    request = {"source": call.source, "id": call.id}
    data: dict[str, Any]
    if isinstance(outcome, UUID):
        kind, subject = ACCEPTED, outcome
        data = {"task": str(outcome), "request": request}
    else:
        # there is no transfer to be the subject: the request itself is, under a name that comes out the same every time
        kind, subject = REFUSED, uuid5(NAMESPACE_URL, f"{call.source}#{call.id}")
        data = {"code": outcome.code, "detail": outcome.detail, "retryable": outcome.retryable, "request": request}
        if isinstance(outcome, InvalidRequest) and outcome.fields:
            data["fields"] = outcome.fields
    return post_event(session, kind, subject, data)


def _without_secrets(data: Any) -> Any:
    """Leave out options that are going to be refused, and URLs' queries: a password could be guessed from the digest
    that is stored.
    """
    if isinstance(data, dict) and "url" in data:
        data = {**data, "url": public_url(data["url"]) if isinstance(data["url"], str) else None}
    options = data.get("options") if isinstance(data, dict) else None
    if isinstance(options, str):
        try:
            options = json.loads(options)
        except (ValueError, RecursionError):
            return {**data, "options": None}
    if not isinstance(options, dict):
        return data if options is None else {**data, "options": None}
    secret = set(secret_names(options))
    return {**data, "options": {name: None if name in secret else value for name, value in options.items()}}


def _uuid(value: object) -> UUID | None:
    try:
        return UUID(value) if isinstance(value, str) else None
    except ValueError:
        return None


def _digest(value: object) -> str:
    return hashlib.sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)).hexdigest()
