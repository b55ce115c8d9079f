"""What each endpoint requires of who asks: declared in its signature, or its `dependencies`; documented as `x-scopes`.

An endpoint that declares nothing is refused when the application is made, unless it is one of PUBLIC.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Any

from fastapi import Depends
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
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


def scopes_of(route: APIRoute) -> list[str] | None:
    """Return the actions that an endpoint requires; [] where any token will do, None where it needs none."""
    calls = list(_calls(route.dependant))
    if asks not in calls:
        return None
    return list(dict.fromkeys(action for call in calls for action in getattr(call, "actions", ())))


def require_declared(routes: Iterable[BaseRoute]) -> None:
    """Raises: InternalError for an endpoint that says neither what it requires nor that it is public."""
    for route in routes:
        if (
            isinstance(route, APIRoute)
            and route.path not in PUBLIC
            and not any(call is not asks and hasattr(call, "actions") for call in _calls(route.dependant))
        ):
            raise InternalError(f"{route.path} does not declare the scopes that it requires")


def _calls(dependant: Dependant) -> Iterator[Any]:
    for one in dependant.dependencies:
        yield one.call
        yield from _calls(one)
