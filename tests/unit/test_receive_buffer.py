"""What paramiko receives for us is read as it came, whatever the pieces; single bytes take no more memory than many."""

from __future__ import annotations

import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from datamanager.transports.ssh.paramiko import _ByteQueue


@given(st.lists(st.one_of(st.binary(max_size=70_000), st.integers(1, 200_000)), max_size=30))
def test_what_is_read_is_what_came_in_its_order(steps: list[bytes | int]) -> None:
    queue, expected = _ByteQueue(), b""
    for step in steps:
        if isinstance(step, bytes):
            queue.feed(step)
            expected += step
        elif expected:
            taken = queue.read(step)
            assert taken == expected[:step]
            expected = expected[step:]
        assert len(queue) == len(expected)
    assert queue.empty() == expected
    assert len(queue) == 0


def test_single_bytes_take_no_more_than_their_sum() -> None:
    queue = _ByteQueue()
    tracemalloc.start()
    try:
        for _ in range(200_000):
            queue.feed(b"x")
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 2 * 200_000
    assert queue.read(200_000) == b"x" * 200_000
