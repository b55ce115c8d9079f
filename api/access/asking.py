"""What each endpoint requires of who asks: declared in its signature, or its `dependencies`; documented as `x-scopes`.

An endpoint that declares nothing is refused when the application is made, unless it is one of PUBLIC.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute, iter_route_contexts
from starlette.requests import Request
from starlette.routing import BaseRoute

from api.access.authentication import authentication_of
from datamanager.errors import InternalError, NotAllowed
from datamanager.identity.grant import Grant
from datamanager.identity.scopes import ACTIONS

PUBLIC = frozenset({
    *("/", "/docs", "/problems/{code}"),
    *("/DM/health/live", "/DM/health/ready"),
})  # fmt: skip
"""The addresses that need no token: documents, and what monitors ask."""


async def asks(request: Request) -> Grant:
    """Return who sends the request; it is `request.state.grant` too. Raises: NotAuthenticated, NotAllowed."""
    grant = await authentication_of(request).grant(request)
    request.state.grant = grant
    return grant


Asked = Annotated[Grant, Depends(asks)]
"""Whoever sends the request, with any scopes or none."""


def requires(*actions: str) -> Any:
    """Return the dependency of an endpoint that does `actions`: its value is who asks, who may do each of them to
    something. What it is that they may do it to, the endpoint asks itself.
    """
    if unknown := set(actions) - ACTIONS.keys():
        raise InternalError(f"{sorted(unknown)} are no actions")

    async def permitted(asked: Asked) -> Grant:
        for action in actions:
            require_some(asked, action)
        return asked

    permitted.actions = actions  # type: ignore[attr-defined]
    return Depends(permitted)


def require_some(grant: Grant, action: str) -> None:
    """Raises: NotAllowed unless `action` may be done to anything at all."""
    if not grant.filters_of(action):
        raise NotAllowed(f"the scope {action} is missing")


@dataclass(frozen=True, slots=True)
class DeclaredEndpoint:
    """An endpoint, and what it requires: `scopes` is [] where any token will do, None where it declares nothing."""

    path: str
    methods: frozenset[str]
    scopes: list[str] | None
    documented: bool


def declared(routes: Sequence[BaseRoute]) -> Iterator[DeclaredEndpoint]:
    """Yield the endpoints of an application."""
    for route in iter_route_contexts(routes):
        if isinstance(route.original_route, APIRoute):
            calls = [call for call in _calls(route.dependant) if hasattr(call, "actions")]
            scopes = list(dict.fromkeys(action for call in calls for action in call.actions)) if calls else None
            methods = frozenset(route.methods or ())
            yield DeclaredEndpoint(route.path_format or "", methods, scopes, bool(route.include_in_schema))


def required_scopes(routes: Sequence[BaseRoute]) -> dict[tuple[str, str], list[str]]:
    """Return what the documented endpoints require, by address and method. Raises: InternalError for an endpoint,
    documented or not, that says neither what it requires nor that it is public.
    """
    found = {}
    for one in declared(routes):
        if (one.scopes is None) is not (one.path in PUBLIC):
            raise InternalError(f"{one.path} must declare the scopes that it requires, or be public")
        if one.documented and one.scopes is not None:
            found.update(dict.fromkeys(((one.path, method) for method in one.methods), one.scopes))
    return found


def _calls(dependant: Dependant) -> Iterator[Any]:
    for one in dependant.dependencies:
        yield one.call
        yield from _calls(one)
