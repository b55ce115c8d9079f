"""For a mover under libfaketime: let it sleep in a way that libfaketime 0.9.10 does not break.

CPython sleeps until a time of the monotonic clock (clock_nanosleep, TIMER_ABSTIME). The library, told to leave that
clock alone, takes the false time off it all the same, and the call ends with EINVAL. `select` it leaves alone.
"""

from __future__ import annotations

import select
import time
from typing import SupportsIndex


def _sleep(seconds: float | SupportsIndex, /) -> None:
    select.select([], [], [], float(seconds))


time.sleep = _sleep
