"""Programs on the machine that take many names at once, NUL-separated on their standard input, where any byte but NUL
may stand in a name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from datamanager.errors import NotSupported, RemoteFailure
from datamanager.transports.bulk_port import Sync
from datamanager.transports.channel import SLOW, Channel, RemoteProgram
from datamanager.transports.remote.running import read_to_end, shell_words
from datamanager.transports.values import from_wire, to_wire

_NAMES_AT_ONCE = 8000
_BYTES_AT_ONCE = 256 * 1024
"""What one program is given: its whole answer fits into the channel, so it is read when all names were written."""
_LINE = re.compile(rb"([0-9a-f]{64}) [ *](.*)", re.DOTALL)


def digests(channel: Channel, paths: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Yield (place in `paths`, hex sha256) of the files that the machine's `sha256sum` reported without ambiguity.

    The rest (no such program, one that escapes odd names, a file that went away) is left out. Raises: ConnectionLost,
    TransportTimeout.
    """
    start = 0
    for batch in _batches(paths):
        out = b""
        with ExitStack() as stack:
            remote = _start(channel, ["sha256sum", "-z", "--"], stack)
            if remote is not None:
                _, out = _feed(channel, remote, batch)
        at = 0
        for line in out.split(b"\0"):
            found = _LINE.fullmatch(line)
            if found is None:
                continue
            # in the order of the names, of which some may be missing
            try:
                at = batch.index(from_wire(found[2]), at) + 1
            except ValueError:
                continue
            yield start + at - 1, found[1].decode("ascii")
        start += len(batch)


@contextmanager
def syncing(channel: Channel) -> Iterator[Sync]:
    """Start what puts file systems on stable storage (coreutils' `sync -f`), and yield what tells it the directories.

    Raises, when told: NotSupported, ConnectionLost, TransportTimeout.
    """
    with ExitStack() as stack:
        remote = _start(channel, ["sync", "-f", "--"], stack)

        def sync(directories: Sequence[str]) -> None:
            if remote is None or _feed(channel, remote, directories)[0] != 0:
                no_sync(directories)

        yield sync


def no_sync(_: Sequence[str]) -> None:
    """Be the Sync of a machine that has none. Raises: NotSupported."""
    raise NotSupported("the machine has no sync that puts a file system on stable storage")


def _batches(names: Sequence[str]) -> Iterator[list[str]]:
    batch, size = list[str](), 0
    for name in names:
        batch.append(name)
        size += len(name)
        if len(batch) >= _NAMES_AT_ONCE or size >= _BYTES_AT_ONCE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _start(channel: Channel, argv: Sequence[str], stack: ExitStack) -> RemoteProgram | None:
    """Start what runs a program on the names that it will be given; None where nothing can be run."""
    try:
        return stack.enter_context(channel.run(shell_words("names", argv), stdin=True))
    except RemoteFailure:
        return None


def _feed(channel: Channel, remote: RemoteProgram, names: Sequence[str]) -> tuple[int | None, bytes]:
    """Give a program its names; return its exit status (None: it did not get that far) and its output."""
    try:
        remote.write(b"".join(to_wire(one) + b"\0" for one in names))
        remote.close_input()
    except RemoteFailure:
        return None, b""  # no xargs
    return read_to_end(channel, remote, channel.patience * SLOW, "the machine worked on many names")
