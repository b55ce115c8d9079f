"""A machine fetches a URL itself: the program that does it, with the curl there.

curl's configuration, secrets and all, goes through the program's standard input and from there, by a builtin of the
shell, into curl's: it is on no command line, in no environment and in no file. That input is the leash as well: its
end (a cancel, a mover that dies, a connection that breaks) ends curl. Between the two, what stands in it says what
becomes of the answer: nothing of a body is stored before its head was found good here.
(docs/adr/0010-fetching-on-the-machine.md)
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from datamanager.errors import ConnectionLost, NotSupported, RemoteFailure, TransportError, TransportTimeout
from datamanager.transports.channel import Channel
from datamanager.transports.values import CurlExit, Progress

_log = logging.getLogger(__name__)

# $1 the file, $2 its size that is gone on from (0: it is created, exclusively), $3 and $4 how many bytes of our input
# are curl's configuration and authorities to trust. Then, a line each, what is to be done:
#   head      pass on the lines of the answer's next head
#   same N    say whether the next N bytes are the file's last ones
#   store N   write what follows into the file, N bytes at most; the end
#   send N    pass it on; the end
# 3 is our input, 4 our output, 5 what curl brings, 6 notes of its end, 7 where curl writes. A process of its own passes
# on the lines, and ends curl at the end of our input; like curl it says its process id first. On one line, and with a
# blank after `!`, so that a csh as login shell passes it on.
_SCRIPT = (
    """exec 3<&0 4>&1 2>/dev/null; umask 077; f=$1; k=$2; n=$3; m=$4; t=; trap 'rm -f "$t"' EXIT; """
    # a printf that is no builtin would have what it prints on its command line; a head that takes more than it gives
    # out (busybox's) would swallow some of the body
    "case $(command -v printf) in */*) exit 91 ;; esac; "
    '[ "$(printf abcdef | { exec 5<&0; head -c 2; printf -; cat /dev/fd/5; })" = ab-cdef ] || exit 91; '
    "command -v cmp >/dev/null || exit 91; "
    "h=; case $(curl -q --version) in *HTTP2*) h=--http1.1 ;; esac; "
    r"r=$(printf '\r'); printf '\ndm-ready\n'; "
    'c=$(head -c "$n" <&3); '
    '[ "$m" = 0 ] || { t=$(mktemp) && head -c "$m" <&3 >"$t" || exit 92; }; '
    "s=$( { { "
    """printf %s "$c" | sh -c 'echo $$ >&7; exec "$@" >&6 3<&- 4>&-' """
    'sh curl -q $h ${t:+--cacert "$t"} --config - 7>&1; echo $? >&6; } | { '
    "read -r p; exec 5<&0; "
    r"""sh -c 'echo $$; while read -r w; do printf "%s\n" "$w"; done; kill "$1"' sh "$p" <&3 | { """
    "read -r w; while read -r g a; do case $g in "
    r"""head) x=; while IFS= read -r l <&5; do printf '%s\n' "$l" >&4; case $l in ''|"$r") x=1; break ;; esac; done; """
    '[ "$x" ] || break ;; '
    'same) if tail -c "$a" <"$f" | { exec 7<&0; head -c "$a" <&5 | cmp -s - /dev/fd/7; }; '
    "then echo dm-same >&4; else echo dm-other >&4; break; fi ;; "
    'store) if [ "$k" = 0 ]; then (set -C; head -c "$a" <&5 >"$f"); '
    'else [ -f "$f" ] && [ ! -h "$f" ] && [ "$(wc -c <"$f")" -eq "$k" ] && head -c "$a" <&5 >>"$f"; fi || '
    "echo full >&6; break ;; "
    'send) head -c "$a" <&5 >&4; break ;; '
    "*) break ;; esac; done; "
    'kill "$w"; }; }; } 6>&1 ); '
    """rm -f "$t"; case $s in *full*) exit 92 ;; esac; printf '\\000dm-end %s\\n' "$s" """
)
_READY = b"\ndm-ready\n"
# what curl was told to note (bytes of the body, seconds until it was connected; nothing when it was killed), its status
_END = re.compile(rb"\0dm-end (?:(\d+)\S* (\S+) )?(\d+)\n$")
_END_MAX = 100
_UNFIT, _FULL, _OPTION_UNKNOWN = 91, 92, 2
_POLL = 0.2
"""Seconds between two calls of `progress` while the program works."""
_ENDING = 10.0
"""Seconds that the program may take to end when it is told to."""
_MOST_NOISE = 64 * 1024
_MOST_HEAD = 2**20


class RemoteCurl:
    """See the port's Curl. Raises (when entered): NotSupported when the machine has not what it takes."""

    def __init__(
        self, channel: Channel, config: bytes, authorities: bytes, path: str, start: int, progress: Progress
    ) -> None:
        self._patience = channel.patience
        self._progress = progress
        self._input = config + authorities
        self._out = b""
        """What it said and nobody took yet."""
        self._over = False
        self._end: CurlExit | None = None
        words = [path, str(start), str(len(config)), str(len(authorities))]
        try:
            self._remote = channel.run(["sh", "-c", _SCRIPT, "sh", *words], stdin=True)
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

    @property
    def end(self) -> CurlExit | None:
        """How curl ended; None while it runs."""
        return self._end

    def __enter__(self) -> Self:
        try:
            self._begin()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        with self._remote:
            if not self._over:
                self._stop()

    def _begin(self) -> None:
        """Wait for the program's first word, whatever a login shell says before, and give it curl's configuration."""
        deadline = time.monotonic() + self._patience
        while _READY not in self._out:
            if not self._listen() or len(self._out) > _MOST_NOISE:
                self._judge(self._remote.exit_status() if self._over else None)
                raise NotSupported("it has no shell, or one whose first words have no end")
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
        """Take in what it says within a moment; say whether it goes on."""
        if self._over:
            return False
        piece = self._remote.read(_POLL)
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
        if self._end is None:
            self._judge(self._remote.exit_status())
            match = _END.search(self._out[-_END_MAX:])
            if match is None:
                raise RemoteFailure("the program that fetches was killed")
            self._out = self._out[: -len(match[0])]
            connected = float((match[2] or b"0").replace(b",", b".")) > 0
            self._end = CurlExit(int(match[3]), int(match[1] or b"0"), connected)
            if self._end.status == _OPTION_UNKNOWN:
                raise NotSupported("its curl is too old")
        return self._take(len(self._out))

    def _judge(self, status: int | None) -> None:
        if self._over and status is None:
            raise ConnectionLost("the connection broke while the machine fetched")
        if status == _UNFIT:
            raise NotSupported("its shell, head or cmp are none with which it could fetch")
        if status == _FULL:
            raise RemoteFailure("the machine could not write what it fetched")

    def _stop(self) -> None:
        """Close the program's input and see it end. The error that leads here matters more than this one's."""
        deadline = time.monotonic() + _ENDING
        try:
            self._remote.close_input()
            while (left := deadline - time.monotonic()) > 0:
                if self._remote.read(left) == b"":
                    self._over = True
                    return
        except TransportError as exc:
            _log.info("the program that fetched went away: %s", exc.detail)
            return
        _log.warning("the program that fetched did not end within %g seconds", _ENDING)


def _blank_line(text: bytes, start: int) -> int | None:
    """Return where the lines up to the first empty one end, None when there is none yet."""
    if text.startswith((b"\n", b"\r\n")):
        return text.index(b"\n") + 1
    ends = [at + len(mark) for mark in (b"\n\r\n", b"\n\n") if (at := text.find(mark, start)) >= 0]
    return min(ends, default=None)
