"""Looks of the API at machines that act as the caller: with the storages of who asks, closed with the request."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from anyio.to_thread import run_sync
from starlette.requests import Request

from api.context import Context
from datamanager.identity.grant import Grant
from datamanager.signing.certificate import Person


def person_of(request: Request) -> Person:
    """Return who asks, for logins. Raises: InvalidRequest when their account can't be used."""
    grant: Grant | None = getattr(request.state, "grant", None)
    task = f"request-{request.state.request_id}"
    return Person(None, task, "nobody") if grant is None else Person.of(grant, task)


@asynccontextmanager
async def acting_for(context: Context, request: Request) -> AsyncIterator[Context]:
    """Return the context with the storages of who asks. Raises: as `person_of`, where it matters."""
    if not context.machines.of_callers:
        yield context
        return
    own = context.storages.of(person_of(request))
    try:
        yield replace(context, storages=own)
    finally:
        await run_sync(own.close)  # it waits for the ends of programs
