"""How a transfer is told to stop: whose word counts, and what the commit point changes."""

from __future__ import annotations

import pytest

from datamanager.domain.states import Phase
from datamanager.engine.control import Control
from datamanager.errors import Cancelled, DataManagerError, DeadlineExceeded, InternalError, LeaseLost, Paused

USER_STOPS = [Cancelled("c"), DeadlineExceeded("d"), Paused("p")]


@pytest.mark.parametrize("stop", USER_STOPS, ids=lambda error: error.code)
def test_control_stops_work_at_its_next_step(stop: DataManagerError) -> None:
    control = Control()
    control.check()
    control.stop(stop)
    control.stop(Cancelled("later"))
    for step in (
        control.check,
        lambda: control.advance(1),
        lambda: control.skip(1),
        lambda: control.enter(Phase.VERIFY),
    ):
        with pytest.raises(type(stop)) as raised:
            step()
        assert raised.value is stop


@pytest.mark.parametrize("stop", USER_STOPS, ids=lambda error: error.code)
def test_control_delays_stop_past_commit_point(stop: DataManagerError) -> None:
    control = Control()
    control.shield()
    control.stop(stop)
    control.check()
    control.enter(Phase.COMMIT)
    control.unshield()
    with pytest.raises(type(stop)):
        control.check()
    with pytest.raises(type(stop)):
        control.shield()


@pytest.mark.parametrize("reason", [LeaseLost("l"), InternalError("the mover stops")])
def test_lost_lease_outranks_user_stop(reason: DataManagerError) -> None:
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
