"""Programs on the machine that take many names at once, NUL-separated on their standard input, where any byte but NUL
may stand in a name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from datamanager.errors import ConnectionLost, RemoteFailure, TransportTimeout
from datamanager.transports.bulk_port import Sync
from datamanager.transports.channel import SLOW, Channel, RemoteProgram
from datamanager.transports.paths import from_wire, to_wire

_NAMES_AT_ONCE = 8000
_BYTES_AT_ONCE = 256 * 1024
"""What one program is given: its whole answer fits into the channel, so it is read when all names were written."""
_LINE = re.compile(rb"([0-9a-f]{64}) [ *](.*)", re.DOTALL)


def digests(channel: Channel, paths: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Yield (place in `paths`, hex sha256) of the files that the machine's `sha256sum` told of without any doubt.

    The rest (no such program, one that escapes odd names, a file that went away) is left out. Raises: ConnectionLost,
    TransportTimeout.
    """
    start = 0
    for batch in _batches(paths):
        _, out = _feed(channel, ["sha256sum", "-z", "--"], batch)
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

    Raises, when told: ConnectionLost, TransportTimeout.
    """
    with ExitStack() as stack:
        try:
            remote = stack.enter_context(_started(channel, ["sync", "-f", "--"]))
        except RemoteFailure:
            yield lambda _: False  # no exec there
            return
        yield lambda directories: _fed(channel, remote, "sync", directories)[0] == 0


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


def _feed(channel: Channel, argv: Sequence[str], names: Sequence[str]) -> tuple[int | None, bytes]:
    """Run a program on the names; return its exit status (None: it did not get that far) and its output."""
    try:
        with _started(channel, argv) as remote:
            return _fed(channel, remote, argv[0], names)
    except RemoteFailure:
        return None, b""  # no exec there


def _started(channel: Channel, argv: Sequence[str]) -> RemoteProgram:
    """Start what runs a program on the names that it will be given. Raises: RemoteFailure."""
    return channel.run(["sh", "-c", 'exec xargs -0 "$@" 2>/dev/null', "sh", *argv], stdin=True)


def _fed(channel: Channel, remote: RemoteProgram, name: str, names: Sequence[str]) -> tuple[int | None, bytes]:
    out, patience = bytearray(), channel.patience * SLOW
    try:
        remote.write(b"".join(to_wire(one) + b"\0" for one in names))
        remote.close_input()
        while (piece := remote.read(patience)) != b"":
            if piece is None:
                raise TransportTimeout(f"the machine's {name} said nothing for {patience:g} seconds")
            out += piece
        status = remote.exit_status()
    except RemoteFailure:
        return None, b""  # no xargs
    if status is None and not channel.alive():
        raise ConnectionLost(f"the connection broke under the machine's {name}")
    return status, bytes(out)
