"""The route of a transfer's bytes, as a table."""

from __future__ import annotations

import pytest

from datamanager.domain.states import Route, TransferKind, plan

COPY, MOVE, FETCH = TransferKind.COPY, TransferKind.MOVE, TransferKind.GETEXTERNAL


@pytest.mark.parametrize(
    ("kind", "source", "destination", "can_copy_within", "can_go_direct", "route"),
    [
        (FETCH, None, "b", True, False, Route.DOWNLOAD),
        (COPY, "a", "b", True, False, Route.RELAY),
        (MOVE, "a", "b", True, False, Route.RELAY),
        (COPY, "a", "b", True, True, Route.DIRECT),
        (MOVE, "a", "b", False, True, Route.DIRECT),
        (MOVE, "a", "a", True, False, Route.RENAME),
        (COPY, "a", "a", True, False, Route.WITHIN),
        (COPY, "a", "a", False, False, Route.RELAY),
    ],
)
def test_the_route(
    kind: TransferKind, source: str | None, destination: str, can_copy_within: bool, can_go_direct: bool, route: Route
) -> None:
    chosen = plan(
        kind,
        source_machine=source,
        destination_machine=destination,
        can_copy_within=can_copy_within,
        can_go_direct=can_go_direct,
    )
    assert chosen is route
