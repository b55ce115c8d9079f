"""The hash of a file on its machine beside the writing, where the machine can do that: what verifies without reading
back."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from datamanager.errors import NotSupported
from datamanager.transports.port import Follower, Session
from datamanager.transports.values import Progress

_log = logging.getLogger(__name__)


@contextmanager
def following(session: Session, path: str) -> Iterator[Follower | None]:
    """Begin to hash a file beside its writing; None where the machine can't."""
    with ExitStack() as stack:
        follower = None
        try:
            follower = stack.enter_context(session.programs.follow(path))
        except NotSupported as exc:
            _log.info("what is stored is hashed afterwards: %s", exc.detail)
        yield follower


def followed(follower: Follower | None, progress: Progress) -> str | None:
    """Return the sha256 (hex) that the follower has of what is stored; None without one, or if the machine failed."""
    try:
        return None if follower is None else follower.result(progress)
    except NotSupported as exc:
        _log.info("what is stored is hashed once more: %s", exc.detail)
        return None
