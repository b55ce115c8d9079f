"""A program on the machine that works on many small files at once: one for all that a session does, no process and no
round trip per file or chunk.

It is ours (`scripts/small_files.py`), and needs a `python3` there. All is done in directories that it walked to without
following a link, so nothing is done elsewhere, whatever others rename meanwhile
(docs/adr/0019-a-program-for-many-files.md). A frame is the work on some files of one directory.
"""

from __future__ import annotations

import errno
import functools
import json
import struct
import time
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from importlib.resources import files as resources
from typing import Any, Protocol

from datamanager.errors import (
    ConnectionLost,
    NotSupported,
    RemoteFailure,
    TransportError,
    TransportTimeout,
)
from datamanager.transports.bulk_port import Results
from datamanager.transports.channel import SLOW, RemoteProgram
from datamanager.transports.values import (
    Bytes,
    FileKind,
    FileStat,
    KeptAttributes,
    NewFile,
    SmallFile,
    error_of,
    path_replaced,
    require_file,
    shown,
)

_GREETING = b"dm-many\n"
_HEAD = struct.Struct(">II")
_FILES, _BYTES = 256, 1 << 20
"""Files, and bytes of them, in one frame."""
_PAGE = 4096
"""Bytes that a file is hashed by at least."""
_UNDER_WAY, _ORDERS = 4 << 20, 64
"""Bytes of files, and orders, that were sent and not answered yet: so many that a chunk of small files goes in one turn
over a long path."""
_WORKING = "while the machine worked on many files"
_TURN = 0.02
"""Seconds for which input is offered before it is looked whether the program waits for its output to be read."""
_POLL = 0.2
"""Seconds between two looks at whether the connection is there, while the program is waited for."""
NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}
"""A file system without hard links: there a name is given as the server does it."""

Order = tuple[dict[str, Any], Sequence[Bytes]]
"""What is to be done, and the bytes that go with it."""
Answer = tuple[int | list[Any], bytes]
"""An entry for each name, or the errno of what is wrong with the directory; and the bytes that were asked for."""


class Host(Protocol):
    """Where the program runs: a machine's channel, or this host."""

    patience: float
    """Seconds for a byte to come."""
    python: str
    """The name or path of its Python."""
    exact: bool
    """Whether the program reports all of a file's stat: inode, links, nanoseconds, ctime, times beyond SFTP's."""

    def run(self, argv: Sequence[str], *, stdin: bool = False) -> RemoteProgram:
        """Start a program. Raises: RemoteFailure when it is refused."""

    def alive(self) -> bool:
        """Say, without blocking, whether the host can still be reached."""


class ManyFiles:
    """The running program of one session, used by the session's thread."""

    def __init__(self, channel: Host) -> None:
        """Start it. Raises: NotSupported when the machine has no shell for us or no python3; ConnectionLost,
        TransportTimeout."""
        self._channel = channel
        self._came = bytearray()
        self.broken = False
        """Whether it can't be used any more."""
        try:
            words = [channel.python, "-I", "-S", "-c", _program(), *(["exact"] if channel.exact else [])]
            self._remote: RemoteProgram = channel.run(words, stdin=True)
        except RemoteFailure as exc:
            raise NotSupported(f"no program can be run: {exc.detail}") from exc
        try:
            if self._take(len(_GREETING), channel.patience) != _GREETING:
                raise NotSupported("the machine's python3 is another program")
        except BaseException as exc:
            self.close()
            if isinstance(exc, RemoteFailure):
                raise NotSupported("the machine has no shell for us, or no python3") from exc
            raise

    def close(self) -> None:
        """End it: it ends with its input. Idempotent."""
        self._remote.__exit__()

    def lstat(self, paths: Sequence[str]) -> Results[FileStat | TransportError]:
        """See the port's Bulk."""
        for index, found, _ in self._each("look", paths):
            yield index, found if isinstance(found, TransportError) else stat_of(found)

    def read(self, paths: Sequence[str], most: int, likely: int) -> Results[SmallFile | TransportError]:
        """See the port's Bulk."""
        together = max(1, min(_FILES, _BYTES // max(1, likely)))
        for index, found, data in self._each("read", paths, together, together * max(1, likely), most=most):
            if isinstance(found, TransportError):
                yield index, found
                continue
            stat, size = stat_of(found[:-1]), found[-1]
            try:
                require_file(stat, paths[index])
                if max(stat.size, size) > most:
                    raise RemoteFailure(f"{shown(paths[index])}: is larger than {most} bytes")
            except RemoteFailure as exc:
                yield index, exc
            else:
                yield index, SmallFile(stat, bytes(data))

    def digest(self, paths: Sequence[str], likely: int) -> Results[str | TransportError]:
        """See the port's Bulk."""
        for index, found, _ in self._each("digest", paths, likely=max(_PAGE, min(likely + 1, _BYTES))):
            yield index, found

    def write(self, files: Iterable[NewFile]) -> Results[KeptAttributes | TransportError]:
        """See the port's Bulk."""
        sent = deque[dict[str, Any]]()

        def orders() -> Iterator[Order]:
            for order, data in frames(files):
                sent.append(order)
                yield order, data

        index = 0
        for answer, _ in self.answers(orders()):
            for kept in written(sent.popleft(), answer):
                yield index, kept
                index += 1

    def rename(self, names: Sequence[tuple[str, str]], *, overwrite: bool) -> Results[int | TransportError | None]:
        """See the port's Bulk; an errno of NO_LINKS where the file system has none, and nothing was changed."""
        olds, news = ([_split(pair[end]) for pair in names] for end in (0, 1))
        ways = [(old, new) for (old, _), (new, _) in zip(olds, news, strict=True)]
        groups = list(_groups(ways, _FILES))

        def orders() -> Iterator[Order]:
            for (old, new), places in groups:
                order = {"do": "rename", "in": old, "to": new, "overwrite": overwrite}
                order["names"], order["new"] = ([end[place][1] for place in places] for end in (olds, news))
                yield order, ()

        for (_, places), (answer, _) in zip(groups, self.answers(orders()), strict=True):
            walked = not isinstance(answer, int)
            for index, found in zip(places, entries_of(answer, len(places)), strict=True):
                if not found:
                    yield index, None
                elif walked and found in NO_LINKS and not overwrite:
                    yield index, found
                else:
                    yield index, error_at(found, names[index][found == errno.EEXIST], walked=walked)

    def remove(self, paths: Sequence[str]) -> Results[TransportError | None]:
        """See the port's Bulk."""
        for index, found, _ in self._each("remove", paths):
            yield index, found or None

    def sync(self, directories: Sequence[str]) -> None:
        """Put the file systems of directories on stable storage. Raises: NotSupported when the machine can't."""
        for answer, _ in self.answers([(sync_order(directories), ())] if directories else []):
            require_synced(answer)

    # --- frames ------------------------------------------------------------------------------------------------------

    def _each(
        self, act: str, paths: Sequence[str], together: int = _FILES, heavy: int = 0, **more: int
    ) -> Iterator[tuple[int, Any, memoryview]]:
        """Have something done with each path; yield its index, its entry or error, and its bytes: `heavy` in all of an
        answer."""
        parts = [_split(path) for path in paths]
        groups = list(_groups([directory for directory, _ in parts], together))
        orders: Iterator[Order] = (
            ({"do": act, "in": where, "names": [parts[place][1] for place in places], **more}, ())
            for where, places in groups
        )
        for (_, places), (answer, data) in zip(groups, self.answers(orders, heavy), strict=True):
            at, view = 0, memoryview(data)
            nothing, walked, reading = view[:0], not isinstance(answer, int), act == "read"
            for index, found in zip(places, entries_of(answer, len(places)), strict=True):
                if isinstance(found, int) and found:
                    yield index, error_at(found, paths[index], walked=walked), nothing
                elif reading:
                    yield index, found, view[at : at + found[-1]]
                    at += found[-1]
                else:
                    yield index, found, nothing

    def answers(self, orders: Iterable[Order], heavy: int = 0) -> Iterator[Answer]:
        """Send orders, as many ahead as `_UNDER_WAY` and `_ORDERS` allow, and yield their answers, which have `heavy`
        bytes of files at most. Left early, those that are under way are taken in.
        """
        waiting, under_way = deque[int](), 0
        try:
            for order, data in orders:
                weight = heavy + sum(map(len, data))
                while waiting and (len(waiting) == _ORDERS or under_way + weight > _UNDER_WAY):
                    under_way -= waiting.popleft()
                    yield self._answer()
                self._send(order, data)
                waiting.append(weight)
                under_way += weight
            while waiting:
                waiting.popleft()
                yield self._answer()
        finally:
            with suppress(TransportError):  # broken then
                for _ in () if self.broken else waiting:
                    self._answer()

    def _send(self, order: dict[str, Any], data: Sequence[Bytes]) -> None:
        text = json.dumps(order).encode("ascii")
        self._write(b"".join((_HEAD.pack(len(text), sum(map(len, data))), text, *data)))

    def _answer(self) -> Answer:
        text, size = _HEAD.unpack(self._take(_HEAD.size, self._channel.patience * SLOW))
        patience = self._channel.patience
        return json.loads(self._take(text, patience)), self._take(size, patience)

    def _write(self, data: bytes) -> None:
        """Send all; what is answered meanwhile is taken in, as the program may be waiting for that."""
        rest, since = memoryview(data), time.monotonic()
        while rest:
            try:
                sent = self._remote.write_some(rest, _TURN)
            except RemoteFailure:
                raise self._ended() from None
            except TransportError:
                self.broken = True
                raise
            rest = rest[sent:]
            if sent:
                since = time.monotonic()
            elif not self._receive(0.0):
                self._require(since, self._channel.patience * SLOW)

    def _take(self, count: int, patience: float) -> bytes:
        since = time.monotonic()
        while len(self._came) < count:
            if self._receive(_POLL):
                since = time.monotonic()
            else:
                self._require(since, patience)
        taken = bytes(self._came[:count])
        del self._came[:count]
        return taken

    def _receive(self, seconds: float) -> bool:
        piece = self._remote.read(seconds)
        if piece == b"":
            raise self._ended()
        self._came += piece or b""
        return piece is not None

    def _ended(self) -> TransportError:
        """Return why the program is gone: it was killed, or the connection broke. Another try starts another one."""
        self.broken = True
        if self._channel.alive():
            return RemoteFailure(f"the program ended {_WORKING}", retryable=True)
        return ConnectionLost(f"the connection broke {_WORKING}")

    def _require(self, since: float, patience: float) -> None:
        """Check that it is worth waiting further."""
        if not self._channel.alive():
            self.broken = True
            raise ConnectionLost(f"the connection broke {_WORKING}")
        if time.monotonic() - since > patience:
            self.broken = True
            raise TransportTimeout(f"no answer for {patience:g} seconds {_WORKING}")


def _groups(keys: Sequence[Any], most: int) -> Iterator[tuple[Any, list[int]]]:
    """Yield each key with the indices that have it, at most `most` at a time."""
    alike = defaultdict[Any, list[int]](list)
    for index, key in enumerate(keys):
        alike[key].append(index)
    for key, places in alike.items():
        for first in range(0, len(places), most):
            yield key, places[first : first + most]


def frames(files: Iterable[NewFile]) -> Iterator[Order]:
    """Yield the orders to write files, of one directory each, and their bytes."""
    directory, names = "", list[str]()
    described, data, room = list[tuple[int, int, int]](), list[Bytes](), 0

    def order() -> Order:
        return {"do": "write", "in": directory, "names": names, "files": described}, data

    for file in files:
        above, name = _split(file.path)
        if names and (room <= 0 or len(names) == _FILES or above != directory):
            yield order()
            names, described, data = [], [], []
        if not names:
            directory, room = above, _BYTES
        names.append(name)
        described.append((file.mode & 0o777, file.mtime, len(file.data)))
        data.append(file.data)
        room -= len(file.data)
    if names:
        yield order()


def written(order: dict[str, Any], answer: int | list[Any]) -> Iterator[KeptAttributes | TransportError]:
    """Yield how the writing of each file of an order ended."""
    entries = entries_of(answer, len(order["names"]))
    for name, (mode, mtime, _size), found in zip(order["names"], order["files"], entries, strict=True):
        if isinstance(found, int):
            yield error_at(found, joined(order["in"], name), walked=not isinstance(answer, int))
        elif found[2] == mtime and found[0] & 0o777 == mode:
            yield KeptAttributes(mtime)
        else:
            yield KeptAttributes.of(stat_of(found), mode=mode, mtime=mtime)


def sync_order(directories: Sequence[str]) -> dict[str, Any]:
    """Return the order to put the file systems of directories on stable storage."""
    return {"do": "sync", "in": "/", "directories": list(directories)}


def require_synced(answer: int | list[Any]) -> None:
    """Return when a `sync_order` was carried out. Raises: NotSupported."""
    if answer != 0:
        raise NotSupported("the machine has no syncfs")


def _split(path: str) -> tuple[str, str]:
    """Return the directory of an absolute path, and its name."""
    directory, _, name = path.rpartition("/")
    return directory or "/", name


def joined(directory: str, name: str) -> str:
    """Return the path of a name in a directory."""
    return f"{directory.rstrip('/')}/{name}"


def entries_of(answer: int | list[Any], count: int) -> list[Any]:
    """Return the entry of each of `count` names. Raises: RemoteFailure when it is not one for each."""
    entries = [answer] * count if isinstance(answer, int) else answer
    if len(entries) != count:
        raise RemoteFailure(f"an answer has {len(entries)} entries for {count} names, {_WORKING}")
    return entries


def error_at(number: int, path: str, *, walked: bool) -> TransportError:
    """Return our error for an errno of the program; `walked`: it had come to the directory."""
    if number == errno.ELOOP and not walked:
        return path_replaced(
            f"{shown(path)}: a directory was replaced by a link while it was used; nothing was changed"
        )
    return error_of(number, path)


def stat_of(found: Sequence[int]) -> FileStat:
    """Return what the program reports of a file."""
    mode, size, mtime, *exact = found
    if not exact:
        return FileStat(FileKind.of(mode), size, mtime, mode & 0o7777)
    device, inode, links, mtime_ns, ctime_ns = exact
    return FileStat(FileKind.of(mode), size, mtime, mode & 0o7777, (device, inode), links, mtime_ns, ctime_ns)


@functools.cache
def _program() -> str:
    """Return the program without its comments, which would be sent each time."""
    text = (resources(__package__) / "scripts" / "small_files.py").read_text("utf-8")
    return "\n".join(line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#"))
