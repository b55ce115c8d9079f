"""Token buckets under a clock of the test's: never more than burst + rate · time, whoever asks and whatever changes."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamanager.engine.control import Control
from datamanager.engine.throttle import BURST, BURST_SECONDS, PIECE, PIECE_SECONDS, SLICE, Bucket, Throttle, Throttles
from datamanager.errors import Cancelled

MB = 10**6
RATES = st.integers(1, 10**10)
COUNTS = st.integers(0, 50 * MB)
ROUNDING = 1.0  # bytes that sums of fractions may be off by


class Clock:
    """A time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 100.0
        self.naps: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.naps.append(seconds)
        self.now = max(self.now + seconds, math.nextafter(self.now, math.inf))


def never() -> None:
    """Say that the work goes on."""


def burst(rate: int) -> float:
    return max(BURST, BURST_SECONDS * rate)


def throttled(clock: Clock, *rates: int | None, own: int | None = None) -> Throttle:
    return Throttle([Bucket(rate, clock) for rate in rates], own, clock, clock.sleep)


@given(rate=st.integers(1000, 10**10), steps=st.lists(st.tuples(st.integers(0, 3 * MB), st.floats(0, 10)), max_size=20))
def test_no_more_passes_than_the_rate_and_one_burst_in_any_span(rate: int, steps: list[tuple[int, float]]) -> None:
    clock = Clock()
    throttle = throttled(clock, rate)
    passed = [(clock.now, 0)]
    for count, idle in steps:
        # what is let go at once and what is waited for: never more, however long the pause before
        throttle.take(min(count, rate * 100), never)
        passed.append((clock.now, passed[-1][1] + min(count, rate * 100)))
        clock.now += idle
    for i, (begun, before) in enumerate(passed):
        for ended, total in passed[i + 1 :]:
            assert total - before <= burst(rate) + rate * (ended - begun) + ROUNDING


@given(changes=st.lists(st.tuples(st.one_of(st.none(), RATES), COUNTS, st.floats(0, 5)), min_size=1, max_size=12))
def test_the_bound_holds_piecewise_when_the_rate_changes(
    changes: list[tuple[int | None, int, float]],
) -> None:
    clock = Clock()
    bucket = Bucket(None, clock)
    throttle = Throttle([bucket], None, clock, clock.sleep)
    for rate, count, idle in changes:
        bucket.rate = rate
        begun = clock.now
        clock.now += idle
        wanted = count if rate is None else min(count, rate * 100)
        throttle.take(wanted, never)
        if rate is None:
            assert clock.now == begun + idle
        else:
            assert wanted <= burst(rate) + rate * (clock.now - begun) + ROUNDING


@given(rate=RATES, blocks=st.integers(1, 50))
def test_a_limit_is_used_up(rate: int, blocks: int) -> None:
    clock, block = Clock(), max(1, min(MB, rate))
    throttle, begun = throttled(clock, rate), clock.now
    for _ in range(blocks):
        throttle.take(block, never)
    # no byte waits longer than it must: what exceeds the burst takes its time at the rate, and no more
    assert clock.now - begun <= max(0.0, blocks * block - burst(rate)) / rate + 1e-6 * blocks


def test_after_a_pause_no_more_than_a_burst_is_saved_up() -> None:
    clock = Clock()
    throttle = throttled(clock, 10 * MB)
    clock.now += 3600
    throttle.take(int(burst(10 * MB)), never)
    assert clock.naps == []
    throttle.take(10 * MB, never)
    assert sum(clock.naps) == pytest.approx(1.0)


def test_every_bucket_is_charged_and_the_slowest_decides() -> None:
    clock = Clock()
    source, destination = Bucket(4 * MB, clock), Bucket(8 * MB, clock)
    both = Throttle([source, destination], 2 * MB, clock, clock.sleep)
    begun = clock.now
    both.take(BURST + 20 * MB, never)
    assert clock.now - begun == pytest.approx(10.0)
    both.limit(None)
    begun = clock.now
    both.take(40 * MB, never)
    assert clock.now - begun == pytest.approx((40 * MB - BURST) / (4 * MB))
    begun = clock.now
    Throttle([source], None, clock, clock.sleep).take(4 * MB, never)  # another transfer of the same machine
    assert clock.now - begun == pytest.approx(1.0)


def test_without_limits_nobody_waits() -> None:
    clock = Clock()
    throttle = throttled(clock, None, None)
    throttle.take(10**15, never)
    assert clock.naps == []
    assert not throttle.limited
    assert throttled(clock, None, 5).limited
    throttle.limit(5)
    assert throttle.limited


def test_the_rate_is_that_of_the_tightest_limit() -> None:
    throttle = throttled(Clock(), None, 7, 9)
    assert throttle.rate == 7
    throttle.limit(5)
    assert throttle.rate == 5
    assert throttled(Clock(), None).rate is None


def test_a_rate_may_change_under_a_waiter() -> None:
    clock = Clock()
    bucket = Bucket(1, clock)
    throttle = Throttle([bucket], None, clock, clock.sleep)
    throttle.take(BURST, never)
    looks: list[float] = []

    def look() -> None:
        looks.append(clock.now)
        if len(looks) == 5:
            bucket.rate = 100 * MB

    throttle.take(MB, look)
    assert len(looks) == 5  # the next look at the rate, a slice later, finds that all may pass
    assert max(clock.naps) == SLICE
    bucket.rate = 1
    lifted: list[float] = []

    def lift() -> None:
        bucket.rate = None
        lifted.append(clock.now)

    throttle.take(BURST + MB, lift)
    assert len(lifted) == 1


def test_who_waits_is_asked_again_and_again_whether_to_stop() -> None:
    clock = Clock()
    bucket = Bucket(1000, clock)
    throttle = Throttle([bucket], None, clock, clock.sleep)
    throttle.take(BURST, never)
    begun = clock.now

    def check() -> None:
        if clock.now - begun > 3:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        throttle.take(MB, check)
    assert clock.now - begun <= 3 + 2 * SLICE
    assert max(clock.naps) <= SLICE
    # what did not pass is not charged to those that come after
    begun = clock.now
    throttle.take(1000, never)
    assert clock.now - begun <= 1.0


class Stage:
    """A time shared by threads of which one runs at a time: who sleeps lets the one go on that wakes first."""

    def __init__(self) -> None:
        self.now = 100.0
        self._turn = threading.Condition()
        self._wakes: dict[str, float] = {}

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        me = threading.current_thread().name
        with self._turn:
            self._wakes[me] = max(self.now + seconds, math.nextafter(self.now, math.inf))
            self._turn.notify_all()
            self._turn.wait_for(lambda: self._next() == me)
            self.now = self._wakes[me]

    def play(self, **acts: Callable[[], None]) -> None:
        """Run all acts to their end, each in a thread of its own, the first one first."""
        self._wakes = {name: self.now + i * 1e-9 for i, name in enumerate(acts)}

        def run(name: str) -> None:
            with self._turn:
                self._turn.wait_for(lambda: self._next() == name)
            acts[name]()
            with self._turn:
                del self._wakes[name]
                self._turn.notify_all()

        threads = [threading.Thread(target=run, args=[name], name=name) for name in acts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _next(self) -> str:
        return min(self._wakes, key=lambda name: self._wakes[name])


@settings(max_examples=15, deadline=None)
@given(
    rate=st.integers(100_000, 20 * MB),
    blocks=st.tuples(*[st.integers(15, 18).map(lambda power: 2**power)] * 2),
    own=st.tuples(*[st.none()] * 2) | st.tuples(st.none(), st.integers(10_000, 50_000)),
)
def test_two_transfers_share_evenly(rate: int, blocks: tuple[int, int], own: tuple[int | None, int | None]) -> None:
    stage = Stage()
    machine = Bucket(rate, stage)
    machine.charge(int(burst(rate)))  # the burst is gone: both have to wait
    throttles = [Throttle([machine], limit, stage, stage.sleep) for limit in own]
    seconds = 100 * max(PIECE, rate * PIECE_SECONDS) / rate
    passed = [0, 0]

    def transfer(i: int) -> None:
        while stage.now < 100 + seconds:
            throttles[i].take(blocks[i], never)
            passed[i] += blocks[i]

    stage.play(first=lambda: transfer(0), second=lambda: transfer(1))
    piece, slack = machine.piece or 0, 2 * max(blocks)
    assert sum(passed) <= rate * (stage.now - 100) + ROUNDING
    if own[1] is not None:  # what one may not use is the other's
        assert passed[1] <= BURST + own[1] * (stage.now - 100) + slack
    else:  # they take turns; a block's last piece, which may be small, is a turn too
        a_block = [math.ceil(block / piece) for block in blocks]
        turns = [done / block * each for done, block, each in zip(passed, blocks, a_block, strict=True)]
        assert abs(turns[0] - turns[1]) <= 3 + 2 * max(a_block)


def test_tickets_pass_in_the_order_in_which_they_were_drawn() -> None:
    clock = Clock()
    bucket = Bucket(MB, clock)
    bucket.charge(BURST)
    waits = [bucket.due(bucket.charge(MB)) for _ in range(5)]
    assert [later - earlier for earlier, later in pairwise(waits)] == pytest.approx([1.0] * 4)
    bucket.rate = 2 * MB
    clock.now += 1.0
    assert bucket.due(BURST + 2 * MB) == 0
    assert bucket.due(BURST + 3 * MB) == pytest.approx(0.5)


def test_a_mover_has_one_bucket_for_each_machine() -> None:
    clock = Clock()
    throttles = Throttles(clock, clock.sleep)
    throttles.set("a", 2 * MB)
    one, other = throttles.of(["a", "b"]), throttles.of(["a", "a"])
    one.take(BURST, never)
    begun = clock.now
    other.take(MB, never)
    assert clock.now - begun == pytest.approx(0.5)
    one.take(MB, never)
    assert clock.now - begun == pytest.approx(1.0)
    throttles.set("a", 2 * MB)  # the same again changes nothing
    throttles.set("b", MB)
    begun = clock.now
    one.take(2 * MB, never)
    assert clock.now - begun == pytest.approx(2.0)
    throttles.set("a", None)
    begun = clock.now
    other.take(100 * MB, never)
    assert clock.now == begun


def test_a_control_counts_then_waits_and_can_be_stopped_meanwhile() -> None:
    clock = Clock()
    throttle = throttled(clock, own=MB)
    control = Control(throttle)
    control.advance(BURST)
    assert (control.bytes_done, clock.naps) == (BURST, [])
    control.skip(10**12)
    assert clock.naps == []
    control.advance(MB)
    assert control.bytes_done == BURST + 10**12 + MB
    assert sum(clock.naps) == pytest.approx(1.0)
    throttle.limit(1)

    def stopping(seconds: float) -> None:
        clock.sleep(seconds)
        control.stop(Cancelled("enough"))

    stopped = Throttle([Bucket(1, clock)], None, clock, stopping)
    control.throttle = stopped
    with pytest.raises(Cancelled):
        control.advance(10 * MB)
