"""Many new files through one tar stream to a program on the machine: no round trip per file at all.

Only GNU tar (asked for its name) is trusted with it: its `--keep-old-files` refuses a name that exists and says so by
its exit status. The stream is GNU tar's own format, which carries names of any length and of any bytes.
"""

from __future__ import annotations

import contextlib
import logging
import re
import tarfile
from collections.abc import Iterable, Iterator

from datamanager.errors import ConnectionLost, RemoteFailure, TransportError, TransportTimeout
from datamanager.transports.channel import SLOW, Channel, RemoteProgram
from datamanager.transports.paths import shown
from datamanager.transports.values import Bytes, NewFile

_log = logging.getLogger(__name__)

# One line without an exclamation mark, so that a csh as login shell passes it on. The user's own TAR_OPTIONS could
# rename or skip; what tar complains about is in its exit status.
_SCRIPT = (
    'case "$(tar --version 2>/dev/null)" in *"GNU tar"*) ;; *) exit 1;; esac; unset TAR_OPTIONS; echo "dm-pid $$"; '
    "exec tar --extract --file=- --keep-old-files --preserve-permissions --no-same-owner "
    '--directory="$1" 2>/dev/null'
)
_PID = re.compile(rb"^dm-pid (\d+)\n", re.MULTILINE)
_MOST_WORDS = 64 * 1024
_PIECE = 256 * 1024
"""Bytes of the stream sent at once."""


def unpack(channel: Channel, files: Iterable[NewFile], directory: str) -> bool:
    """Create the files below `directory` by one program; True when it made them all, exactly.

    False when the machine has no such program (`files` was not touched then), or it failed: some may have been made.
    However this is left, the program has ended, if the machine can be reached. Raises: what `files` raises;
    ConnectionLost, TransportTimeout.
    """
    try:
        with channel.run(["sh", "-c", _SCRIPT, "sh", directory], stdin=True) as remote:
            pid = _first_words(remote, channel.patience)
            if pid is None:
                return False
            try:
                for piece in _pieces(tar_stream(files, directory)):
                    remote.write(piece)
                remote.close_input()
            except RemoteFailure as exc:
                _log.info("tar ended early in %s: %s", shown(directory), exc.detail)
            except BaseException:
                _end(channel, remote, pid)
                raise
            return _ended_well(channel, remote)
    except RemoteFailure as exc:
        _log.info("no program can be run in %s: %s", shown(directory), exc.detail)
        return False


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


def _first_words(remote: RemoteProgram, patience: float) -> bytes | None:
    """Return the pid that the program says first; None when it ends, or says anything else at length, instead."""
    words = b""
    while (found := _PID.search(words)) is None:
        piece = remote.read(patience)
        if piece is None:
            raise TransportTimeout(f"the machine started no program within {patience:g} seconds")
        words += piece
        if not piece or len(words) > _MOST_WORDS:
            return None
    return found[1]


def _ended_well(channel: Channel, remote: RemoteProgram) -> bool:
    patience = channel.patience * SLOW
    while (piece := remote.read(patience)) != b"":
        if piece is None:
            raise TransportTimeout(f"tar did not end within {patience:g} seconds")
    status = remote.exit_status()
    if status is None and not channel.alive():
        raise ConnectionLost("the connection broke while files were unpacked")
    return status == 0


def _end(channel: Channel, remote: RemoteProgram, pid: bytes) -> None:
    """See that the program has ended, which it does at the end of its input. What leads here matters more than a
    failure of this."""
    with contextlib.suppress(TransportError):
        remote.close_input()
        while (piece := remote.read(channel.patience)) != b"":
            if piece is None:
                with channel.run(["kill", pid.decode("ascii")]) as killer:
                    killer.read(channel.patience)
                return
