"""The control connection of FTP (RFC 959, 2428, 3659, 4217): ftplib's client, bound to one checked address.

Passive only; whatever address the server names, the data connection goes to the control connection's. With TLS both are
encrypted and verified, and the data connection resumes the control connection's session, as servers demand.
"""

from __future__ import annotations

import ftplib
import re
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from datamanager.errors import AuthenticationFailed, ConnectionLost, DataManagerError, DownloadFailed, SourceMissing
from datamanager.sources.network.connections import as_ours
from datamanager.sources.network.egress_guard import EgressGuard
from datamanager.sources.terms.urls import Address

MAX_LINES = 1000
"""Lines of one answer."""
MAX_ANSWER = 256 * 1024
"""Bytes of one answer, whatever the length of its lines."""
BUSY_AGAIN = timedelta(seconds=10)
"""When a server is asked again that has too many connections: FTP has no way to say that."""

GOODBYE_WITHIN = 2.0
"""Seconds that a server has to end a connection which is no longer needed."""

_NUMBER = re.compile(r"213 +([0-9]{1,19})\s*")
_TIME = re.compile(r"213 +([0-9]{14})(\.[0-9]+)?\s*")
_NOT_UNDERSTOOD = frozenset({"500", "501", "502", "503", "504", "534", "536"})
_BUSY = re.compile(r"too many|maximum|limit .*reached|already connected|try again later", re.IGNORECASE)
_OTHER_LIMIT = re.compile(r"attempt|fail|password|incorrect", re.IGNORECASE)
"""Too many of these is no number of connections."""
_NOT_LOGGED_IN = frozenset({"331", "332", "530", "532"})


@dataclass(frozen=True, slots=True)
class FtpLogin:
    """The login (anonymous without a username), and `tls`: None (clear text), "explicit" or "implicit"."""

    username: str | None
    password: str | None = field(repr=False)
    tls: str | None


class FtpControl(ftplib.FTP_TLS):
    """A conversation with one server. Used by one thread."""

    maxline = MAX_ANSWER

    def __init__(
        self,
        sock: socket.socket,
        host: str,
        address: Address,
        guard: EgressGuard,
        context: ssl.SSLContext,
        login: FtpLogin,
        timeout: float,
    ) -> None:
        # latin-1 both ways: what is sent are the very bytes of the path, and no answer is unreadable
        super().__init__(context=context, timeout=timeout, encoding="latin-1")
        self.host = host
        self.sock = sock
        self.af = sock.family
        self._address = address
        self._guard = guard
        self._login = login
        self._lines = self._bytes = 0
        self._ragged = True

    def begin(self) -> None:
        """Read the welcome, secure both connections, log in and set binary mode.

        Raises: ftplib's errors, OSError, EOFError.
        """
        assert self.sock is not None  # noqa: S101 for mypy: only `close` takes it away
        self.sock.settimeout(self.timeout)
        if self._login.tls == "implicit":
            self.sock = self.context.wrap_socket(self.sock, server_hostname=self.host)
        self.file = self.sock.makefile("r", encoding=self.encoding)
        while (welcome := self.getresp()).startswith("1"):  # 120: ready in some minutes
            continue
        self.welcome = welcome
        if self._login.tls == "explicit":
            self.auth()
        if self._login.username is None:
            self.login(secure=False)
        else:
            self.login(_as_sent(self._login.username), _as_sent(self._login.password or ""), secure=False)
        if self._login.tls is not None:
            self.prot_p()
        self.voidcmd("TYPE I")

    def size_of(self, path: str) -> int | None:
        """Return the file's bytes; None when the server does not say."""
        return None if (match := self._fact("SIZE", path, _NUMBER)) is None else int(match[1])

    def modified(self, path: str) -> datetime | None:
        """Return when the file was modified; None when the server does not say."""
        match = self._fact("MDTM", path, _TIME)
        if match is not None:
            with suppress(ValueError):
                return datetime.strptime(match[1], "%Y%m%d%H%M%S").replace(tzinfo=UTC)
        return None

    def can_begin_at(self, offset: int) -> bool:
        """Say whether a file can be read from this offset on; False when the server can't do that."""
        try:
            return self.sendcmd(f"REST {offset}").startswith("350")
        except ftplib.error_perm:
            return False

    def retrieve(self, path: str, start: int, *, size_known: bool) -> socket.socket:
        """Return the connection by which the file's bytes come, from `start` on.

        Without a known size TLS must end by close_notify: nothing else shows that the connection was cut.

        Raises: UrlNotAllowed, ftplib's errors, OSError, EOFError.
        """
        self._ragged = size_known
        # once more, although it was sent before: it has to be the last command before this one (RFC 3659, 5.3)
        return self.ntransfercmd(f"RETR {path}", start or None)[0]

    def quit_and_close(self) -> None:
        """Log out, and wait until the server has ended the connection: many serve few connections to one client, and
        count one that has just been dropped."""
        with suppress(OSError, EOFError, ftplib.Error, UnicodeError):
            if self.sock is not None and self.file is not None:
                self.sock.settimeout(GOODBYE_WITHIN)
                self.putcmd("QUIT")
                deadline = time.monotonic() + GOODBYE_WITHIN
                while time.monotonic() < deadline and self.sock.recv(MAX_ANSWER):
                    continue
        self.close()

    def abort_waits(self) -> None:
        """End every wait of this connection, from any thread."""
        if (sock := self.sock) is not None:
            with suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)  # of the socket itself, also below TLS

    def _fact(self, command: str, path: str, wanted: re.Pattern[str]) -> re.Match[str] | None:
        try:
            return wanted.fullmatch(self.sendcmd(f"{command} {path}"))
        except ftplib.error_perm:
            return None  # not supported, or no such file: RETR shows which

    # --- what ftplib does, within bounds ------------------------------------------------------------------------------

    def getmultiline(self) -> str:
        """Read one answer of at most MAX_LINES lines and MAX_ANSWER bytes."""
        self._lines = self._bytes = 0
        return super().getmultiline()

    def getline(self) -> str:
        """Read one line of an answer."""
        self._lines += 1
        if self._lines > MAX_LINES:
            raise ftplib.error_proto("a reply of too many lines")  # noqa: S321
        line = super().getline()
        self._bytes += len(line)
        if self._bytes > MAX_ANSWER:
            raise ftplib.error_proto("a reply that is too long")  # noqa: S321
        return line

    def makepasv(self) -> tuple[str, int]:
        """Request the data connection's port; the address is the control connection's, whatever the server says.

        Raises: UrlNotAllowed for a port that DM_DOWNLOAD_DENY denies.
        """
        _, port = super().makepasv()
        if not 1024 <= port <= 65535:
            raise ftplib.error_proto("a data connection to a port that is not allowed")  # noqa: S321
        self._guard.refuse_denied(self.host, port, [self._address])
        return str(self._address), port

    def ntransfercmd(self, cmd: str, rest: int | str | None = None) -> tuple[socket.socket, int | None]:
        """Begin a transfer; with TLS in the control connection's session."""
        connection, size = ftplib.FTP.ntransfercmd(self, cmd, rest)  # noqa: S321
        if self._login.tls is None:
            return connection, size
        session = self.sock.session if isinstance(self.sock, ssl.SSLSocket) else None
        try:
            secured = self.context.wrap_socket(
                connection, server_hostname=self.host, session=session, suppress_ragged_eofs=self._ragged
            )
        except BaseException:
            connection.close()
            raise
        return secured, size


def _as_sent(text: str) -> str:
    return text.encode().decode("latin-1")


@contextmanager
def ftp_errors(shown: str, *, login: bool = False) -> Iterator[None]:
    """Raise our errors for ftplib's and the socket's; `shown` is a `public_url`. The error has an answer's code only.

    `login`: the conversation is before the first file.
    """
    try:
        yield
    except ftplib.Error as exc:
        raise _answered(exc, shown, login) from None  # the text is the server's, which may repeat what it was sent
    except EOFError:
        raise ConnectionLost(f"{shown}: the server closed the connection") from None
    except OSError as exc:
        raise as_ours(exc, shown) from exc
    except ValueError:  # of ftplib's parsers
        raise DownloadFailed(f"{shown}: the server's answer is not proper FTP") from None


def _answered(exc: ftplib.Error, shown: str, login: bool) -> DataManagerError:
    code, text = str(exc)[:3], str(exc)[3:]
    crowded = code == "530" and _BUSY.search(text) and not _OTHER_LIMIT.search(text)
    if login and (code == "421" or crowded):
        return DownloadFailed(
            f"{shown}: the server has too many connections ({code})", retryable=True, again=BUSY_AGAIN
        )
    if isinstance(exc, ftplib.error_temp):
        if code in ("425", "426"):
            return ConnectionLost(f"{shown}: the data connection could not be made, or broke ({code})")
        return DownloadFailed(f"{shown}: the server answered {code}", retryable=True)
    if login and code in _NOT_UNDERSTOOD:
        return DownloadFailed(f"{shown}: the server does not support the requested command, possibly TLS ({code})")
    if code in _NOT_LOGGED_IN or (login and isinstance(exc, ftplib.error_perm)):
        return AuthenticationFailed(f"{shown}: the server refused the login ({code})")
    if code == "550":
        return SourceMissing(f"{shown}: there is no such file, or it may not be read ({code})")
    if code.isdigit():
        return DownloadFailed(f"{shown}: the server answered {code}")
    return DownloadFailed(f"{shown}: the server's answer is not proper FTP")
