"""Contexts entered and left at the same time: order of what they give, errors on the way in, within, and out."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from datamanager.engine.single.endpoints import concurrently


class Doors:
    """Contexts that say when they are entered and left, and fail where they are told to."""

    def __init__(self) -> None:
        self.entered: list[int] = []
        self.left: list[tuple[int, str]] = []
        self.all_in = threading.Barrier(3)

    @contextmanager
    def door(self, number: int, *, closed: bool = False, stuck: bool = False, wait: bool = False) -> Iterator[int]:
        if wait:
            self.all_in.wait(60)
        if closed:
            raise KeyError(number)
        self.entered.append(number)
        try:
            yield number
        except BaseException as exc:
            self.left.append((number, type(exc).__name__))
            raise
        self.left.append((number, ""))
        if stuck:
            raise ValueError(number)


def test_all_are_entered_at_the_same_time_and_given_in_order() -> None:
    doors = Doors()
    with concurrently(
        [doors.door(number, wait=True) for number in range(3)]
    ) as given:  # in turn they would wait for ever
        assert given == [0, 1, 2]
    assert sorted(doors.left) == [(0, ""), (1, ""), (2, "")]


def test_the_others_are_entered_after_the_first() -> None:
    doors = Doors()

    @contextmanager
    def slow() -> Iterator[int]:
        time.sleep(0.2)
        with doors.door(0) as number:
            yield number

    with concurrently([slow(), doors.door(1), doors.door(2)], after_first=True) as given:
        assert given == [0, 1, 2]
    assert doors.entered[0] == 0
    assert sorted(doors.left) == [(0, ""), (1, ""), (2, "")]


def test_after_a_first_one_that_is_closed_no_other_is_entered() -> None:
    doors = Doors()
    with pytest.raises(KeyError), concurrently([doors.door(0, closed=True), doors.door(1)], after_first=True):
        pytest.fail("entered")
    assert not doors.entered
    assert not doors.left


@pytest.mark.parametrize("count", [0, 1])
def test_few_need_no_threads(count: int) -> None:
    doors = Doors()
    with concurrently([doors.door(number) for number in range(count)]) as given:
        assert given == list(range(count))
    assert len(doors.left) == count


def test_one_that_is_closed_lets_the_others_out() -> None:
    doors = Doors()
    with pytest.raises(KeyError), concurrently([doors.door(0), doors.door(1, closed=True), doors.door(2)]):
        pytest.fail("entered")
    assert sorted(doors.entered) == [0, 2]
    assert sorted(doors.left) == [(0, "KeyError"), (2, "KeyError")]


def test_an_error_within_is_told_to_all() -> None:
    doors = Doors()
    with pytest.raises(RuntimeError), concurrently([doors.door(number) for number in range(3)]):
        raise RuntimeError
    assert sorted(doors.left) == [(number, "RuntimeError") for number in range(3)]


def test_an_error_on_the_way_out_is_raised_when_all_have_left() -> None:
    doors = Doors()
    with pytest.raises(ValueError, match="1"), concurrently([doors.door(0), doors.door(1, stuck=True), doors.door(2)]):
        pass
    assert len(doors.left) == 3
