"""Programs on the machine for many small files at once: no round trip per file.

`sha256sum` and `sync` take names NUL-separated on their standard input, where any byte but NUL may stand in a name. New
files go through one tar stream. Only GNU tar is trusted with it: its `--keep-old-files` refuses a name that exists and
says so by its exit status, and its format carries names of any length and of any bytes.
"""

from __future__ import annotations

import logging
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from datamanager.errors import NotSupported, RemoteFailure
from datamanager.transports.bulk_port import Sync
from datamanager.transports.channel import SLOW, Channel, RemoteProgram
from datamanager.transports.remote.running import Running, end_by_input, read_to_end, shell_words
from datamanager.transports.values import Bytes, NewFile, from_wire, shown, to_wire

_log = logging.getLogger(__name__)

_NAMES_AT_ONCE = 8000
_BYTES_AT_ONCE = 256 * 1024
"""What one program is given: its whole answer fits into the channel, so it is read when all names were written."""
_PIECE = 256 * 1024
"""Bytes of a tar stream sent at once."""
_LINE = re.compile(rb"([0-9a-f]{64}) [ *](.*)", re.DOTALL)


def digests(channel: Channel, paths: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Yield (place in `paths`, hex sha256) of the files that the machine's `sha256sum` reported without ambiguity.

    The rest (no such program, one that escapes odd names, a file that was removed) is left out. Raises: ConnectionLost,
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
    """Start what puts file systems on stable storage (coreutils' `sync -f`), and yield what sends it the directories.

    Raises, when called: NotSupported, ConnectionLost, TransportTimeout.
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


def unpack(channel: Channel, files: Iterable[NewFile], directory: str) -> None:
    """Create the files below `directory` by one program, all of them, exactly.

    However this is left, the program has ended, if the machine can be reached. Raises: NotSupported when the machine
    has no such program (`files` was not touched then), or it failed: some may have been made; what `files` raises;
    ConnectionLost, TransportTimeout.
    """
    try:
        with Running(channel, "unpack", [directory], stdin=True) as running:
            if not running.starts():
                raise NotSupported("the machine has no shell for us, or no GNU tar")
            try:
                for piece in _pieces(tar_stream(files, directory)):
                    running.remote.write(piece)
                running.remote.close_input()
            except RemoteFailure as exc:
                _log.info("tar ended early in %s: %s", shown(directory), exc.detail)
            except BaseException:
                running.ended = end_by_input(running.remote, channel.patience, "the tar that unpacked files")
                raise
            status, _ = read_to_end(channel, running.remote, channel.patience * SLOW, "files were unpacked")
            running.ended = True
    except RemoteFailure as exc:
        raise NotSupported(f"no program can be run in {shown(directory)}: {exc.detail}") from exc
    if status != 0:
        raise NotSupported(f"tar failed in {shown(directory)} with status {status}")


def tar_stream(files: Iterable[NewFile], directory: str) -> Iterator[Bytes]:
    """Yield a tar archive of regular files piece by piece; names are relative to `directory`, modes without setuid.

    Holds one file at a time.
    """
    above = directory.rstrip("/") + "/"
    for file in files:
        header = tarfile.TarInfo(file.path.removeprefix(above))
        header.size, header.mode, header.mtime = len(file.data), file.mode & 0o777, file.mtime
        yield header.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
        yield file.data
        yield bytes(-len(file.data) % tarfile.BLOCKSIZE)
    yield bytes(2 * tarfile.BLOCKSIZE)


def _pieces(stream: Iterable[Bytes]) -> Iterator[Bytes]:
    """Join what is small: each piece is sent by itself."""
    joined = bytearray()
    for part in stream:
        joined += part
        if len(joined) >= _PIECE:
            yield joined
            joined.clear()
    yield joined


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
