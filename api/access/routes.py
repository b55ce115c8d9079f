"""Who asks; and the service tokens: make, list, rotate and revoke them.

Answers with a token are not kept for an `Idempotency-Key`: then it would be in the catalogue.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter
from sqlalchemy.orm import Session
from starlette.requests import Request
from starlette.responses import Response

from api.access.asking import requires
from api.access.authentication import authentication_of
from api.access.views import ReadmittedView, TokenView, WhoamiView, WithdrawnView, token_view, whoami_view
from api.context import In
from api.http import openapi
from api.http.idempotency import Slot, mutate
from api.http.operations import note_operation
from api.http.request_parts import read_request
from api.http.responses import json_response, view_of
from datamanager import errors
from datamanager.errors import InvalidRequest, NotAllowed
from datamanager.identity.grant import Grant, Means
from datamanager.identity.scopes import AccessTarget, FilterKind, Scope
from datamanager.identity.service_token import ServiceToken
from datamanager.identity.token_requests import PersonRequest, RotateRequest, TokenRequest
from models.access import tokens as service_tokens
from models.access.tokens import NewToken, grant_of
from models.access.visibility import seen
from models.database import now
from models.tables import TokenRecord, WithdrawnPerson

ACTION = "admin:tokens"
MayManage = Annotated[Grant, requires(ACTION)]
router = APIRouter(prefix="/DM", tags=["access"], default_response_class=Response)
_NOT_KEPT = {"Cache-Control": "no-store"}


@router.get(
    "/whoami", summary="Show who asks", responses=openapi.json_answer(WhoamiView, "Who asks, and their scopes.")
)
async def whoami(asked: Annotated[Grant, requires()]) -> Response:
    """Show who asks, by which means, and what they may."""
    return json_response(whoami_view(asked))


@router.post(
    "/tokens",
    summary="Make a service token",
    status_code=201,
    responses=openapi.json_answer(TokenView, "The token; its text is shown this once.", *openapi.BODY, status=201),
    openapi_extra=openapi.body(TokenRequest, forms=False, keyed=False),
)
async def create_token(request: Request, context: In, asked: MayManage) -> Response:
    """Make a service token, with roles, groups and scopes that whoever asks has too. `expires` is a time, or a duration
    such as P90D. An `Idempotency-Key` is ignored: the answer is not kept. A name that is in use is refused.
    """
    fields = await read_request(request, TokenRequest)
    tokens, new = authentication_of(request).tokens, ServiceToken.make()

    def enter(session: Session) -> TokenRecord:
        expires = fields.expires
        ends = now(session) + expires if isinstance(expires, timedelta) else expires
        if ends is not None and ends <= now(session):
            raise InvalidRequest.of({"expires": "must be in the future"})
        digest = new.digest(tokens.key)
        wanted = NewToken(new.identifier, digest, fields.name, fields.roles, fields.groups, fields.scopes, ends)
        scopes = (*tokens.roles.scopes_of(fields.roles), *map(Scope.parse, fields.scopes))
        if not fields.groups and _of_groups(scopes):
            raise InvalidRequest.of({"groups": "required: of the scopes some are for the token's own groups (!group)"})
        _require_own(asked, fields.groups, scopes)
        note_operation(session, request, subject=new.identifier)
        return service_tokens.create_token(session, wanted, asked)

    row = await context.writing(enter)
    return json_response(token_view(row, new.reveal()), 201, _NOT_KEPT)


@router.get(
    "/tokens",
    summary="List service tokens",
    responses=openapi.json_answer(TokenView, "The tokens, oldest first, revoked ones too.", many=True),
)
async def list_tokens(context: In, asked: MayManage) -> Response:
    """List the service tokens, without their texts, which the service does not have."""
    rows = await context.reading(lambda session: service_tokens.list_tokens(session, seen(asked, ACTION)))
    return json_response([token_view(row) for row in rows])


@router.post(
    "/tokens/{id}/rotate",
    summary="Rotate a service token",
    status_code=201,
    responses=openapi.json_answer(
        TokenView,
        "The new token; its text is shown this once.",
        *openapi.BODY,
        errors.TokenNotFound,
        status=201,
    ),
    openapi_extra=openapi.body(RotateRequest, forms=False, keyed=False),
)
async def rotate_token(id: str, request: Request, context: In, asked: MayManage) -> Response:  # noqa: A002
    """Replace a token by a new one with the same name, roles, groups, scopes and span of life. The old one is accepted
    for `overlap` (1d) more. An `Idempotency-Key` is ignored: the answer is not kept.
    """
    fields = await read_request(request, RotateRequest)
    tokens, new, visible = authentication_of(request).tokens, ServiceToken.make(), seen(asked, ACTION)

    def enter(session: Session) -> TokenRecord:
        old = grant_of(service_tokens.get_token(session, id, visible), tokens.roles)
        _require_own(asked, old.groups, old.scopes)
        digest = new.digest(tokens.key)
        note_operation(session, request, subject=f"{id} to {new.identifier}")
        return service_tokens.rotate_token(session, id, new.identifier, digest, visible, asked, fields.overlap)

    row = await context.writing(enter)
    return json_response(token_view(row, new.reveal()), 201, _NOT_KEPT)


@router.delete(
    "/tokens/{id}",
    summary="Revoke a service token",
    responses=openapi.json_answer(TokenView, "The revoked token.", *openapi.BODY, errors.TokenNotFound),
    openapi_extra=openapi.body(),
)
async def revoke_token(id: str, request: Request, context: In, asked: MayManage) -> Response:  # noqa: A002
    """Revoke a token: each process refuses it at once, and transfers that were requested with it end within a minute.
    Idempotent.
    """
    visible = seen(asked, ACTION)

    def change(session: Session, _: Slot) -> Response:
        row = service_tokens.revoke_token(session, id, visible, asked)
        session.flush()
        return json_response(token_view(row))

    return await mutate(context, request, change)


@router.get(
    "/withdrawn",
    summary="List withdrawn persons",
    responses=openapi.json_answer(WithdrawnView, "The persons, by name.", many=True),
)
async def list_withdrawn(context: In, asked: MayManage) -> Response:
    """List the persons whom nothing is permitted any more. It needs `admin:tokens` without filters."""
    asked.require(ACTION)
    rows = await context.reading(service_tokens.withdrawn_persons)
    return json_response([view_of(WithdrawnView, row) for row in rows])


@router.put(
    "/withdrawn",
    summary="Withdraw a person",
    responses=openapi.json_answer(WithdrawnView, "The person.", *openapi.BODY),
    openapi_extra=openapi.body(PersonRequest),
)
async def withdraw_person(request: Request, context: In, asked: MayManage) -> Response:
    """Permit a person nothing any more, whatever their tokens of the issuer say: those can't be revoked. What they have
    requested ends within a minute. Idempotent. It needs `admin:tokens` without filters.
    """
    asked.require(ACTION)
    fields = await read_request(request, PersonRequest)

    def change(session: Session, _: Slot) -> Response:
        service_tokens.withdraw_person(session, fields.person, asked)
        return json_response(view_of(WithdrawnView, session.get_one(WithdrawnPerson, fields.person)))

    return await mutate(context, request, change, fields, subject=fields.person)


@router.delete(
    "/withdrawn",
    summary="Readmit a person",
    responses=openapi.json_answer(ReadmittedView, "The person.", *openapi.BODY),
    openapi_extra=openapi.body(PersonRequest),
)
async def readmit_person(request: Request, context: In, asked: MayManage) -> Response:
    """Let a withdrawn person in again. Idempotent. It needs `admin:tokens` without filters."""
    asked.require(ACTION)
    fields = await read_request(request, PersonRequest)

    def change(session: Session, _: Slot) -> Response:
        return json_response({"person": fields.person, "was": service_tokens.readmit_person(session, fields.person)})

    return await mutate(context, request, change, fields, subject=fields.person)


def _of_groups(scopes: Iterable[Scope]) -> bool:
    return any(one.kind is FilterKind.GROUP and one.value is None for scope in scopes for one in scope.filters)


def _require_own(asked: Grant, groups: Collection[str], scopes: Iterable[Scope]) -> None:
    """Check that a token may get these groups and scopes from whoever asks, who must have them too. `!user` is what is
    the token's own. Raises: NotAllowed.
    """
    for group in groups or (None,):
        asked.require(ACTION, AccessTarget(group, owner=asked.person))
    if not asked.covers(Grant(asked.person, frozenset(groups), tuple(scopes), Means.TOKEN)):
        raise NotAllowed("a token can't have scopes that whoever makes it has not")
