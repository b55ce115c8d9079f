"""sftp: a file on an SSH server that is no machine of ours.

`sftp://host/path` is absolute, `sftp://host/~/path` is below the login's directory. Regular files only; their size and
modification time are the version. (draft-ietf-secsh-filexfer-02)
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path

import paramiko
from paramiko.sftp import SFTPError

from datamanager.errors import (
    DataManagerError,
    DownloadFailed,
    InvalidRequest,
    PermissionDenied,
    SizeMismatch,
    SourceChanged,
    SourceMissing,
    TooLarge,
)
from datamanager.sources.network.blocks import gathered
from datamanager.sources.network.egress_guard import EgressGuard
from datamanager.sources.network.file_servers import FileUrl, bounded, connect, parse_file_url, refuse_expect_type
from datamanager.sources.sftp.pipelined_reads import ReadingClient, reading
from datamanager.sources.sftp.ssh_login import Login, TrustedKeys, logged_in, parse_private_key, ssh_errors
from datamanager.sources.terms.options import SftpOptions

PORTS = {"sftp": 22}


@dataclass(frozen=True, slots=True)
class SftpSource:
    """A file of an SFTP server. Timeouts are seconds, `max_size` is bytes."""

    url: str
    guard: EgressGuard
    max_size: int
    login: Login
    host_key: str | None = None
    """The only host key to accept, as in known_hosts or as fingerprint; else the known_hosts files decide."""
    connect_timeout: float = 10.0
    read_timeout: float = 60.0
    known_hosts: Sequence[Path] | None = None
    """Files to take instead of the user's and the system's."""

    @classmethod
    def of(
        cls,
        url: str,
        options: SftpOptions,
        *,
        guard: EgressGuard,
        max_size: int,
        connect_timeout: float,
        read_timeout: float,
    ) -> SftpSource:
        """Return the source for a URL with these options.

        Raises: UrlNotAllowed, InvalidRequest (no username, keys that can't be read), NotSupported (expect_type).
        """
        parsed = parse_file_url(url, PORTS)
        refuse_expect_type(options, parsed)
        if not options.username:
            why = "is needed: sftp has no anonymous login"
            raise InvalidRequest(f"options.username: {why}", {"options.username": why})
        TrustedKeys(parsed, options.host_key, ())
        password, key = options.password, options.private_key
        login = Login(
            options.username,
            None if password is None else password.get_secret_value(),
            None if key is None else key.get_secret_value(),
        )
        if login.private_key is not None:
            parse_private_key(login.private_key)
        return cls(url, guard, max_size, login, options.host_key, connect_timeout, read_timeout)

    def check(self) -> None:
        """Refuse a URL that is malformed, or a host where downloads may not go. Raises: UrlNotAllowed."""
        url = parse_file_url(self.url, PORTS)
        self.guard.check(url.host, url.port)

    @contextmanager
    def open(self, start: int = 0, stop: int | None = None, *, version: str | None = None) -> Iterator[SftpDownload]:
        """Connect, log in and open the file; see Source.open."""
        url = parse_file_url(self.url, PORTS)
        trusted = TrustedKeys(url, self.host_key, self.known_hosts)
        sock, _ = connect(self.guard, url, self.connect_timeout)
        # only what this source does is translated, not what goes wrong where the bytes are put
        with ExitStack() as stack:
            with sftp_errors(url):
                login = logged_in(sock, url, trusted, self.login, self.connect_timeout)
                transport = stack.enter_context(login)
                client = stack.enter_context(reading(transport, self.connect_timeout, self.read_timeout))
                with bounded(self.read_timeout, transport.close):
                    download = self._opened(url, client, start, stop, version)
            yield download

    def _opened(
        self, url: FileUrl, client: ReadingClient, start: int, stop: int | None, version: str | None
    ) -> SftpDownload:
        path = url.path.removeprefix(b"/~/")
        if not stat.S_ISREG(client.stat(path).st_mode or 0):  # before: to open a pipe waits for somebody who writes
            raise SourceMissing(f"{url.shown} is no regular file")
        download = SftpDownload(client, client.open(path, "rb"), url, start, stop, self)
        if version is not None and version != download.version:
            raise SourceChanged(f"{url.shown} is not what it was when the download began")
        return download


class SftpDownload:
    """A file that is open. Raises (when made): SourceMissing, TooLarge, DownloadFailed."""

    etag = content_type = None
    ranges = True

    def __init__(
        self,
        client: ReadingClient,
        file: paramiko.SFTPFile,
        url: FileUrl,
        start: int,
        stop: int | None,
        source: SftpSource,
    ) -> None:
        self.url = url.shown
        self.filename = url.path.rpartition(b"/")[2].decode("utf-8", "replace")
        self._from = url
        self._client = client
        self._file = file
        self._source = source
        self._attributes = self._look()
        size, mtime = self._attributes
        if size > source.max_size:
            raise TooLarge(f"{self.url} is {size} bytes, allowed are {source.max_size}")
        self.size: int | None = size
        self.version: str | None = f"{size}-{mtime}"
        self.last_modified: str | None = format_datetime(datetime.fromtimestamp(mtime, UTC), usegmt=True)
        self.start = min(start, size)
        self._stop = size if stop is None else min(stop, size)

    def blocks(self) -> Iterator[memoryview]:
        """Yield the file's bytes, and look in the end whether it is what it was; see Download.blocks."""
        yield from gathered(self._pieces(), self.url, self._stop - self.start, self._source.max_size)

    def _pieces(self) -> Iterator[bytes]:
        received = 0
        with sftp_errors(self._from):
            for piece in self._client.stream(self._file, self.start, self._stop, self._source.read_timeout):
                received += len(piece)
                yield piece
            with bounded(self._source.read_timeout, self._client.close):
                changed = self._look() != self._attributes
        if changed:
            raise SourceChanged(f"{self.url} changed while it was read")
        if received != self._stop - self.start:
            raise SizeMismatch(f"{self.url} announced {self._stop - self.start} bytes and sent {received}")

    def _look(self) -> tuple[int, int]:
        """Return the open file's size and modification time."""
        found = self._file.stat()
        if not stat.S_ISREG(found.st_mode or 0):
            raise SourceMissing(f"{self.url} is no regular file")
        if found.st_size is None or found.st_mtime is None:
            raise DownloadFailed(f"{self.url}: the server does not tell the file's size and modification time")
        return found.st_size, int(found.st_mtime)


@contextmanager
def sftp_errors(url: FileUrl) -> Iterator[None]:
    """Raise our errors for what an SFTP conversation raises; a status is a plain OSError to paramiko."""
    with ssh_errors(url.shown):
        try:
            yield
        except SFTPError as exc:
            raise DownloadFailed(f"{url.shown}: the SFTP server's answer does not fit") from exc
        except OSError as exc:
            if type(exc) is OSError or exc.errno in (errno.ENOENT, errno.EACCES):
                raise _status_error(exc, url) from exc
            raise


def _status_error(exc: OSError, url: FileUrl) -> DataManagerError:
    if exc.errno == errno.ENOENT:
        return SourceMissing(f"{url.shown}: there is no such file")
    if exc.errno == errno.EACCES:
        return PermissionDenied(f"{url.shown}: the server refuses to let us read it")
    return DownloadFailed(f"{url.shown}: the SFTP server answered with an error")
