"""How a transfer is told to stop: whose word counts, and what the commit point changes."""

from __future__ import annotations

import pytest

from datamanager.domain.states import Phase
from datamanager.engine.control import Control
from datamanager.errors import Cancelled, DataManagerError, DeadlineExceeded, InternalError, LeaseLost, Paused

WISHES = [Cancelled("c"), DeadlineExceeded("d"), Paused("p")]


@pytest.mark.parametrize("wish", WISHES, ids=lambda error: error.code)
def test_a_wish_stops_the_work_at_its_next_step(wish: DataManagerError) -> None:
    control = Control()
    control.check()
    control.stop(wish)
    control.stop(Cancelled("later"))
    for step in (
        control.check,
        lambda: control.advance(1),
        lambda: control.skip(1),
        lambda: control.enter(Phase.VERIFY),
    ):
        with pytest.raises(type(wish)) as raised:
            step()
        assert raised.value is wish


@pytest.mark.parametrize("wish", WISHES, ids=lambda error: error.code)
def test_past_the_point_of_no_return_wishes_wait(wish: DataManagerError) -> None:
    control = Control()
    control.shield()
    control.stop(wish)
    control.check()
    control.enter(Phase.COMMIT)
    control.unshield()
    with pytest.raises(type(wish)):
        control.check()
    with pytest.raises(type(wish)):
        control.shield()


@pytest.mark.parametrize("reason", [LeaseLost("l"), InternalError("the mover stops")])
def test_who_lost_the_lease_stops_whatever_was_wished(reason: DataManagerError) -> None:
    control = Control()
    control.stop(Cancelled("c"))
    control.stop(reason)
    control.stop(LeaseLost("later"))
    assert control.stopping is reason
    control = Control()
    control.shield()
    control.stop(reason)
    with pytest.raises(type(reason)):
        control.check()
