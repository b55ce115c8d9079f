"""`Idempotency-Key`: the same key and request get the same answer, and nothing is done twice.

(IETF draft-ietf-httpapi-idempotency-key-header.) Requests that come while the first is at work join it and get its
answer, a 5xx too; after that a 5xx is forgotten. The fingerprint is taken over method, path and parsed fields, so a
form and JSON with the same fields are the same request. What the request makes is written into its key in the same
transaction: a process that dies leaves a key whose next holder finds the object or transfer and continues from there.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID, uuid4

import structlog
from anyio.to_thread import run_sync
from sqlalchemy.orm import Session
from starlette.requests import Request
from starlette.responses import Response

from api.context import Context
from api.http.operations import note_operation, note_refusal
from api.http.problems import MEDIA_TYPE, of_this_request, problem_response
from api.http.request_parts import read_request
from datamanager.domain.requests import GetExternalRequest
from datamanager.domain.requests import Request as OurRequest
from datamanager.errors import (
    CatalogueUnavailable,
    DataManagerError,
    InternalError,
    InvalidRequest,
    SecretsUnreadable,
)
from datamanager.identity.grant import Grant, Means
from datamanager.sealing import Sealer
from datamanager.sources.terms.request_secrets import mark_of, parted
from models.core import idempotency
from models.core.idempotency import StoredAnswer

HOLD = timedelta(seconds=30)
"""How long a key stays with a process that does not prolong it."""
PROLONG_EVERY = 10.0  # seconds
JOIN_POLL = 0.25  # seconds between two looks at a key that another process holds
KEY_MAX = 255
_HASHED = "http:"
"""Begins the stored form of a person's keys, and of those that would be taken for those of messages."""

KEPT_HEADERS = ("content-type", "location", "preference-applied", "retry-after", "vary")

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Slot:
    """The key that a request works under ("": without one), and what was made under it: by this request, or by a
    predecessor that did not end."""

    key: str = ""
    holder: str = ""
    subject: UUID | None = None
    ended: bool = False
    """How the subject ended is known: a failure is the answer then, and no doubt whether something was made."""
    made: UUID | None = None
    """What this request made."""
    answer: StoredAnswer | None = None
    """What the request was answered, also a failure: those that joined it get the same."""

    def attach(self, session: Session, subject: UUID) -> None:
        """Write what was made into the key, in the transaction that makes it."""
        self.made = subject
        if self.key:
            idempotency.attach(session, self.key, self.holder, subject)


Work = Callable[[Slot], Awaitable[Response]]
Change = Callable[[Session, Slot], Response]


async def once(context: Context, request: Request, fields: OurRequest, work: Work) -> Response:
    """Do `work` at most once for the request's key, or repeat the answer that it had.

    Raises: InvalidRequest for a bad key, IdempotencyMismatch; without a key whatever `work` raises.
    """
    key = key_of(request)
    if key is None:
        return await work(Slot())
    fingerprint = await run_sync(fingerprint_of, request.method, request.url.path, fields, Sealer.of(context.settings))
    slot = Slot(key, f"{context.name}-{uuid4().hex[:12]}")
    answer = await _begin_or_join(context, slot, fingerprint)
    if answer is not None:
        headers = {**answer.headers, "Idempotency-Replayed": "true"}
        text = answer.body
        if headers.get("content-type") == MEDIA_TYPE:
            text = of_this_request(text, request.state.request_id)
        return Response(text, status_code=answer.status, headers=headers)
    async with _held(context, slot):
        return await _answered(context, request, slot, work)


async def mutate(
    context: Context,
    request: Request,
    change: Change,
    fields: OurRequest | None = None,
    *,
    notify: str | None = None,
    subject: str | None = None,
) -> Response:
    """Change rows in one transaction, at most once for the request's key, and answer with what `change` returns. The
    audit trail has a row of it; `subject` is what it is about, where the address does not say that.

    The relay of events is notified then, and with a topic (`notify`) the movers of this host.
    """

    async def work(slot: Slot) -> Response:
        def changed(session: Session) -> Response:
            response = change(session, slot)
            if slot.subject is None:  # else a request that did not end has made it, and its row
                note_operation(session, request, made=slot.made, subject=subject)
            return response

        response = await context.writing(changed)
        context.notify_relay()
        if notify is not None:
            context.notify_movers(notify)
        return response

    return await once(context, request, await read_request(request, OurRequest) if fields is None else fields, work)


def key_of(request: Request) -> str | None:
    """Return the request's key, as it is stored. Raises: InvalidRequest when it is empty, too long or not printable
    ASCII.
    """
    given = request.headers.getlist("idempotency-key")
    if not given:
        return None
    key = given[0].strip()
    if len(given) > 1 or not 0 < len(key) <= KEY_MAX or not (key.isascii() and key.isprintable()):
        what = f"one value of 1 to {KEY_MAX} printable ASCII characters"
        raise InvalidRequest(f"Idempotency-Key: must be {what}", {"Idempotency-Key": what})
    grant: Grant | None = getattr(request.state, "grant", None)
    if grant is not None and grant.means is not Means.NONE:  # each person has keys of their own
        return _HASHED + hashlib.sha256(f"{grant.person}\0{key}".encode()).hexdigest()
    if key.startswith((idempotency.AMQP, _HASHED)):  # nobody may ask by HTTP what a message was answered
        return _HASHED + hashlib.sha256(key.encode()).hexdigest()
    return key


def fingerprint_of(method: str, path: str, fields: OurRequest, sealer: Sealer | None = None) -> str:
    """Return the sha256 that tells one request from another; of one with secrets a keyed one, as a password could be
    guessed from a plain one. Raises: SecretsUnreadable, also when there are secrets and no sealer.
    """
    secrets = None
    if isinstance(fields, GetExternalRequest):
        fields, secrets = parted(fields)
    canonical = json.dumps(fields.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    text = "\0".join((method, path.rstrip("/"), canonical))
    if secrets is None:
        return hashlib.sha256(text.encode()).hexdigest()
    if sealer is None:
        raise SecretsUnreadable("a request with secrets needs a key")
    return mark_of(secrets, text, sealer)


async def _begin_or_join(context: Context, slot: Slot, fingerprint: str) -> StoredAnswer | None:
    """Return the stored answer, or that of the request that was joined; None when the key is ours now."""
    key, keep = slot.key, context.settings.idempotency_keep
    while True:
        begun = await context.writing(
            lambda session: idempotency.begin(session, key, fingerprint, slot.holder, HOLD, keep)
        )
        if begun.answer is not None:
            return begun.answer
        if begun.mine:
            slot.subject = begun.subject
            return None
        at_work = context.keys.get(key)
        if at_work is None:
            answer = await _until_left(context, key, begun.holder)
        else:
            answer = await asyncio.shield(at_work)
        if answer is not None:
            return answer


async def _until_left(context: Context, key: str, holder: str) -> StoredAnswer | None:
    """Wait while the request `holder`, of another process, works under the key; return the failure that it ended with.

    Only looks: to begin is to write, one at a time on SQLite.
    """
    while True:
        await asyncio.sleep(JOIN_POLL)
        if await context.reading(lambda session: idempotency.holder_of(session, key)) != holder:
            break
    return await context.reading(lambda session: idempotency.failure_of(session, holder))


@asynccontextmanager
async def _held(context: Context, slot: Slot) -> AsyncIterator[None]:
    """Prolong the lease while the work runs; afterwards answer those who joined in this process."""
    finished = context.keys[slot.key] = asyncio.get_running_loop().create_future()
    prolonging = asyncio.create_task(_prolong(context, slot))
    try:
        yield
    finally:
        prolonging.cancel()
        if context.keys.get(slot.key) is finished:
            del context.keys[slot.key]
        finished.set_result(slot.answer)


async def _prolong(context: Context, slot: Slot) -> None:
    while True:
        await asyncio.sleep(PROLONG_EVERY)
        try:
            await context.writing(lambda session: idempotency.prolong(session, slot.key, slot.holder, HOLD))
        except CatalogueUnavailable as exc:
            log.warning("idempotency_key_not_renewed", error=exc.detail)


async def _answered(context: Context, request: Request, slot: Slot, work: Work) -> Response:
    try:
        response = await work(slot)
    except DataManagerError as exc:
        response = problem_response(exc, request.state.request_id)
        if response.status_code < 500:
            note_refusal(context, request, exc)
        if response.status_code >= 500:
            # a commit whose answer was lost may have been applied: the key must then lead a retry to what was made
            doubtful = isinstance(exc, CatalogueUnavailable) and not slot.ended
            await _settle(context, slot, response, idempotency.release if doubtful else idempotency.drop)
            raise
    except Exception:  # a fault of ours, passed on: what was made by then must be found by a retry
        response = problem_response(InternalError("unexpected"), request.state.request_id)
        await _settle(context, slot, response, idempotency.release)
        raise
    await _settle(context, slot, response, idempotency.drop)
    return response


async def _settle(context: Context, slot: Slot, response: Response, leave: Callable[[Session, str, str], None]) -> None:
    """Store the answer; of a 5xx, which must not be repeated to others than those that joined, `leave` the key."""
    headers = {name: value for name, value in response.headers.items() if name in KEPT_HEADERS}
    answer = slot.answer = StoredAnswer(response.status_code, headers, bytes(response.body).decode())

    def change(session: Session) -> None:
        if answer.status < 500:
            idempotency.store(session, slot.key, slot.holder, answer)
        else:
            leave(session, slot.key, slot.holder)
            idempotency.keep_failure(session, slot.holder, answer)

    try:
        await context.writing(change)
    except CatalogueUnavailable as exc:
        # the answer is right as it is; the lease runs out and a retry finds what was made
        log.warning("idempotency_key_not_settled", error=exc.detail)
