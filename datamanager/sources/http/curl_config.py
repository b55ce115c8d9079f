"""The configuration of a machine's curl, and the meaning of its exit status.

It makes one request, to one checked address: it resolves nothing, follows no redirect, asks no proxy and reads no other
configuration. Only options that a curl of 2013 (7.29) knows are used.
(curl(1), "-K, --config" and "EXIT CODES")
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from datamanager.errors import ConnectionLost, DataManagerError, DownloadFailed, InternalError, TransportTimeout
from datamanager.sources.network.blocks import MIN_RATE
from datamanager.sources.terms.urls import Address, Target

UNREACHED = frozenset({6, 7})
"""No connection; 6 where it has no such address family."""
NOT_TAKEN, STALLED = 23, 28

_ONE_LINE = re.compile(r"[\x20-\x7e]*")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, 5.6.2; so none begins with @, which would name a file
_NO_HTTP = frozenset({1, 8, 43, 61})
_NOT_CONNECTED = UNREACHED | {5}
_BROKEN = frozenset({16, 18, 35, 52, 55, 56, 92})
_NOT_TRUSTED = frozenset({51, 58, 59, 60, 77, 80, 82, 83, 90, 91})
_KILLED = 128


def curl_config(
    target: Target,
    address: Address,
    headers: Mapping[str, str],
    *,
    verify: bool,
    connect_timeout: float,
    read_timeout: float,
    rate: int | None = None,
) -> bytes:
    """Return curl's configuration for a GET whose head and body go to descriptor 7, the notes of its end to its output.

    Timeouts are seconds, `rate` is bytes per second. Raises: InternalError for what can't stand in it.
    """
    values = [
        ("url", target.url),
        ("proto", f"={target.scheme}"),
        ("noproxy", "*"),
        *([] if target.host == str(address) else [("resolve", f"{target.host}:{target.port}:{address}")]),
        *(("header", _header(name, value)) for name, value in headers.items()),
        ("connect-timeout", _seconds(connect_timeout)),
        ("speed-limit", str(MIN_RATE)),
        ("speed-time", _seconds(read_timeout)),
        ("output", "/dev/fd/7"),
        ("write-out", "%{size_download} %{time_connect} "),
    ]
    if rate is not None:
        values.append(("limit-rate", str(max(1, rate))))
    # one that could not read `resolve` must not look for another address itself
    flags = [f"ipv{address.version}", "silent", "include", "no-buffer", "globoff", *([] if verify else ["insecure"])]
    lines = [*flags, *(f"{name} = {_quoted(value)}" for name, value in values)]
    return ("\n".join(lines) + "\n").encode("ascii")


def curl_error(status: int, url: str) -> DataManagerError:
    """Return our error for a curl that failed; `url` is shown and must be a `public_url`."""
    ended = f"curl's status {status}"
    if status == STALLED:
        return TransportTimeout(f"{url} did not answer, or stalled, or sent too slowly ({ended})")
    if status in _NOT_TRUSTED:
        return DownloadFailed(f"no trusted TLS connection to {url} ({ended})")
    if status in _NO_HTTP:
        return DownloadFailed(f"{url} did not answer in proper HTTP ({ended})")
    if status in _NOT_CONNECTED:
        return ConnectionLost(f"no connection to {url}: it was refused, or there is no route ({ended})")
    if status in _BROKEN:
        return ConnectionLost(f"the connection to {url} broke ({ended})")
    if status > _KILLED:
        return ConnectionLost(f"curl was killed while it downloaded {url} ({ended})")
    return DownloadFailed(f"{url} could not be read ({ended})")


def _header(name: str, value: str) -> str:
    if not _TOKEN.fullmatch(name):
        raise InternalError("a header's name can't be given to curl")
    return f"{name}: {value}" if value else f"{name};"  # with a colon it would not be sent


def _quoted(value: str) -> str:
    if not _ONE_LINE.fullmatch(value):
        raise InternalError("a value is no line of ASCII, and can't be given to curl")
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _seconds(value: float) -> str:
    return str(max(1, math.ceil(value)))
