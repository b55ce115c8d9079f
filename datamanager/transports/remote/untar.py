"""Many new files through one tar stream to a program on the machine: no round trip per file at all.

Only GNU tar (asked for its name) is trusted with it: its `--keep-old-files` refuses a name that exists and says so by
its exit status. The stream is GNU tar's own format, which carries names of any length and of any bytes.
"""

from __future__ import annotations

import logging
import tarfile
from collections.abc import Iterable, Iterator

from datamanager.errors import NotSupported, RemoteFailure, TransportTimeout
from datamanager.transports.channel import SLOW, Channel
from datamanager.transports.remote.running import Running, end_by_input, read_to_end
from datamanager.transports.values import Bytes, NewFile, shown

_log = logging.getLogger(__name__)

_PIECE = 256 * 1024
"""Bytes of the stream sent at once."""


def unpack(channel: Channel, files: Iterable[NewFile], directory: str) -> None:
    """Create the files below `directory` by one program, all of them, exactly.

    However this is left, the program has ended, if the machine can be reached. Raises: NotSupported when the machine
    has no such program (`files` was not touched then), or it failed: some may have been made; what `files` raises;
    ConnectionLost, TransportTimeout.
    """
    try:
        with Running(channel, "unpack", [directory], stdin=True) as running:
            _wait_for_start(running, channel.patience)
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


def _wait_for_start(running: Running, patience: float) -> None:
    """Return once the program has said its process id. Raises: NotSupported when it ends, or says anything else at
    length, instead; TransportTimeout."""
    while not running.started:
        before = running.out
        if not running.listen(patience) or running.noisy:
            raise NotSupported("the machine has no shell for us, or no GNU tar")
        if running.out == before:
            raise TransportTimeout(f"the machine started no program within {patience:g} seconds")
