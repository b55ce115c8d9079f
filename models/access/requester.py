"""Who asks for what is done now: the audit trail and quotas want it in every change, as the log wants the request's id.

It is a context variable: it follows a request into its threads, and nothing has to pass it on. What is done outside of
a request is the service's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace

from datamanager.identity.grant import Grant
from models.access.permission import maker

SERVICE, HOST = "service", "host"
"""Means besides those of grants: the service by itself, a command on its host."""
ORIGIN_MAX = 200
"""Characters of an origin, and of a request's id: a broker's queue may have longer names."""


@dataclass(frozen=True, slots=True)
class Requester:
    """Who asks, by which means and credential, from where, and in which request; see `TrailEntry`."""

    person: str | None = None
    means: str = SERVICE
    credential: str | None = None
    origin: str = ""
    request_id: str | None = None
    groups: frozenset[str] = frozenset()


THE_SERVICE = Requester()
_current: ContextVar[Requester] = ContextVar("requester", default=THE_SERVICE)


def requester() -> Requester:
    """Return who asks; the service itself outside of `requested`."""
    return _current.get()


@contextmanager
def requested(origin: str, request_id: str | None, means: str, person: str | None = None) -> Iterator[None]:
    """Note for the context from where a request is, and in which means it is taken until `identify` says better."""
    shown = None if request_id is None else request_id[:ORIGIN_MAX]
    before = _current.set(Requester(person, means, None, origin[:ORIGIN_MAX], shown))
    try:
        yield
    finally:
        _current.reset(before)


def identify(grant: Grant) -> None:
    """Note whose request it is, once that is known; until the end of `requested`."""
    _current.set(
        replace(
            requester(),
            person=maker(grant),
            means=grant.means.value,
            credential=grant.credential,
            groups=grant.groups,
        )
    )


def requester_for(grant: Grant | None) -> Requester:
    """Return who asks, where it is the service itself the person whose grant it acts with."""
    by = requester()
    return replace(by, person=maker(grant)) if by.person is None else by
