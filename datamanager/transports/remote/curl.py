"""A machine fetches a URL itself: the program that does it, with the curl there.

curl's configuration, secrets and all, goes through the program's standard input and from there, by a builtin of the
shell, into curl's: it is on no command line, in no environment and in no file. That input also bounds its life: its
end (a cancel, a mover that dies, a connection that breaks) ends curl. Between the two, what stands in it says what
becomes of the answer: nothing of a body is stored before its head was found good here.
(docs/adr/0010-fetching-on-the-machine.md)
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Self

from datamanager.errors import ConnectionLost, NotSupported, RemoteFailure, TransportTimeout
from datamanager.transports.channel import Channel
from datamanager.transports.remote.running import POLL, end_by_input, shell_words
from datamanager.transports.values import CurlExit, Progress

_READY = b"\ndm-ready\n"
# curl's `write-out` (bytes of the body, seconds until it was connected; nothing when it was killed), and its status
_END = re.compile(rb"\0dm-end (?:(\d+)\S* (\S+) )?(\d+)\n$")
_END_MAX = 100
_UNFIT, _FULL, _OPTION_UNKNOWN = 91, 92, 2
_ENDING = 10.0
"""Seconds that the program may take to end once its input is closed."""
_MOST_HEAD = 2**20


class RemoteCurl:
    """See the port's RunningCurl. Raises (when entered): NotSupported when the machine has not what it takes."""

    def __init__(
        self, channel: Channel, config: bytes, authorities: bytes, path: str, start: int, progress: Progress
    ) -> None:
        self._patience = channel.patience
        self._progress = progress
        self._input = config + authorities
        self._out = b""
        """What it said, and was not taken yet."""
        self._over = False
        self.end: CurlExit | None = None
        """How curl ended; None while it runs."""
        words = [path, str(start), str(len(config)), str(len(authorities))]
        try:
            self._remote = channel.run(shell_words("fetch", words), stdin=True)
        except RemoteFailure as exc:
            raise NotSupported(f"it runs no programs for us: {exc.detail}") from exc

    def head(self, patience: float) -> bytes:
        """Return the lines of the answer's next head, the empty one at its end included; what there is of it, maybe
        nothing, when the answer ends before. Raises: TransportTimeout after `patience` seconds.
        """
        self._tell(b"head\n")
        seen, deadline = 0, time.monotonic() + patience
        while True:
            if (stop := _blank_line(self._out, seen)) is not None:
                return self._take(stop)
            if len(self._out) > _MOST_HEAD:
                return self._take(len(self._out))
            if time.monotonic() > deadline:
                raise TransportTimeout("the machine's curl brought no head of an answer in time")
            seen = max(0, len(self._out) - 3)
            if not self._listen():
                return self._rest()

    def same(self, count: int) -> bool:
        """Say whether the body's next `count` bytes are the file's last ones; when they are not, this is the end."""
        self._tell(b"same %d\n" % count)
        while self._out.count(b"\n") < 1 and self._listen():
            pass
        if self._out.startswith(b"dm-same\n"):
            self._take(len(b"dm-same\n"))
            return True
        while self._listen():
            pass
        self._rest()
        return False

    def store(self, most: int) -> None:
        """Have what follows written into the file, at most `most` bytes; return at the answer's end."""
        self._tell(b"store %d\n" % most)
        while self._listen():
            pass
        self._rest()

    def send(self, most: int) -> Iterator[bytes]:
        """Yield what follows, at most `most` bytes, to the answer's end."""
        self._tell(b"send %d\n" % most)
        while self._listen():
            if len(self._out) > _END_MAX:
                yield self._take(len(self._out) - _END_MAX)
        if rest := self._rest():
            yield rest

    def __enter__(self) -> Self:
        try:
            self._begin()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        with self._remote:
            if not self._over:
                self._over = end_by_input(self._remote, _ENDING, "the program that fetched")

    def _begin(self) -> None:
        """Wait until the program is ready, and send it curl's configuration."""
        deadline = time.monotonic() + self._patience
        while _READY not in self._out:
            if not self._listen():
                self._judge(self._remote.exit_status())
                raise NotSupported("it has no shell for us")
            if time.monotonic() > deadline:
                raise TransportTimeout(f"the machine began no program within {self._patience:g} seconds")
        self._take(self._out.index(_READY) + len(_READY))
        self._tell(self._input)
        self._input = b""

    def _tell(self, data: bytes) -> None:
        try:
            self._remote.write(data)
        except RemoteFailure:
            return  # it has ended; how, its output and status say

    def _listen(self) -> bool:
        """Take in what it says within a moment; say whether it still runs."""
        if self._over:
            return False
        piece = self._remote.read(POLL)
        if piece is None:
            self._progress(0)
        else:
            self._out += piece
            self._over = piece == b""
        return not self._over

    def _take(self, count: int) -> bytes:
        taken, self._out = self._out[:count], self._out[count:]
        return taken

    def _rest(self) -> bytes:
        """Return what was left to take when it ended, and note how curl ended.

        Raises: ConnectionLost; RemoteFailure when the file can't be written.
        """
        if self.end is None:
            self._judge(self._remote.exit_status())
            match = _END.search(self._out[-_END_MAX:])
            if match is None:
                raise RemoteFailure("the program that fetches was killed")
            self._out = self._out[: -len(match[0])]
            connected = float((match[2] or b"0").replace(b",", b".")) > 0
            self.end = CurlExit(int(match[3]), int(match[1] or b"0"), connected)
            if self.end.status == _OPTION_UNKNOWN:
                raise NotSupported("its curl is too old")
        return self._take(len(self._out))

    def _judge(self, status: int | None) -> None:
        if self._over and status is None:
            raise ConnectionLost("the connection broke while the machine fetched")
        if status == _UNFIT:
            raise NotSupported("its shell, head or cmp are none with which it could fetch")
        if status == _FULL:
            raise RemoteFailure("the machine could not write what it fetched")


def _blank_line(text: bytes, start: int) -> int | None:
    """Return where the lines up to the first empty one end, None when there is none yet."""
    if text.startswith((b"\n", b"\r\n")):
        return text.index(b"\n") + 1
    ends = [at + len(mark) for mark in (b"\n\r\n", b"\n\n") if (at := text.find(mark, start)) >= 0]
    return min(ends, default=None)
