"""Stored credentials: options that a request names (`credential`) instead of sending them, and the hosts they are for.

A client chooses where a download comes from. So a stored credential names the hosts that it may be sent to, or any
client could have it sent to a host of his own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, urlsplit

from datamanager.domain.requests import GetExternalRequest
from datamanager.errors import CredentialNotAllowed, CredentialUnusable, UrlNotAllowed
from datamanager.sources.terms.source_options import option_error
from datamanager.sources.terms.urls import canonical_host, parse_target, require_plain

OPTION = "credential"
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,62})")
_ENTRY = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<host>[^\[\]:/?#@\s]+))(?::(?P<port>[0-9]{1,5}))?")
_ENCRYPTED = {"https": 443, "ftps": 990, "sftp": 22, "webdavs": 443, "davs": 443, "s3": 443}
"""Schemes whose usual port an entry without a port means."""
_PLAIN = {"http": 80, "ftp": 21, "webdav": 80, "dav": 80}
"""Schemes that send logins in clear text: an entry must name the port."""
AWS = "s3.amazonaws.com"
"""The host that stands for all of Amazon's, where a request for S3 names no endpoint."""


@dataclass(frozen=True, slots=True)
class Credential:
    """A stored credential, read."""

    name: str
    hosts: frozenset[tuple[str, int | None]]
    """Host and port; without a port the usual one of an encrypted protocol is meant."""
    options: Mapping[str, Any] = field(repr=False)


def credential_name(options: Mapping[str, Any]) -> str | None:
    """Return the name of the credential that the options name. Raises: InvalidRequest when it can't be a name."""
    name = options.get(OPTION)
    if name is None or name == "":
        return None
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise option_error(OPTION, "must be a credential's name: lower-case letters, digits and dashes, at most 63")
    return name


def variable_end(name: str) -> str:
    """Return what comes after `DM_CREDENTIAL_` in the variable of a credential."""
    return name.upper().replace("-", "_")


def read_credential(name: str, value: object) -> Credential:
    """Read a stored credential: a JSON object of option fields and `hosts`, or its text.

    Raises: CredentialUnusable; its text never quotes the credential.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = None
    if not isinstance(value, dict):
        raise CredentialUnusable(f"credential {name} is not a JSON object of options and hosts")
    options = dict(value)
    hosts = options.pop("hosts", None)
    if not isinstance(hosts, list) or not hosts or not all(isinstance(host, str) for host in hosts):
        raise CredentialUnusable(f'credential {name} does not name its hosts: "hosts": ["data.example.org"]')
    if OPTION in options:
        raise CredentialUnusable(f"credential {name} names another one")
    return Credential(name, frozenset(_entry(name, host) for host in hosts), options)


def with_credential(request: GetExternalRequest, credential: Credential) -> GetExternalRequest:
    """Return the request with the credential's options, which count more than its own.

    Every host that the client named must be one that the credential may be sent to: the URL's, mirrors, an endpoint, a
    proxy. What the credential itself names is the operator's.

    Raises: CredentialNotAllowed.
    """
    own = {name: value for name, value in request.options.items() if name != OPTION}
    merged = {**own, **credential.options}
    theirs = {name: value for name, value in own.items() if name not in credential.options}
    s3 = request.url.lower().startswith("s3:")
    urls = [] if s3 and merged.get("endpoint") else [request.url]
    mirrors = theirs.get("mirrors") or []
    urls += mirrors if isinstance(mirrors, list | tuple) else [mirrors]
    urls += [theirs[name] for name in ("endpoint", "proxy") if theirs.get(name)]
    for url in urls:
        _check(credential, url)
    return request.model_copy(update={"options": merged})


def _check(credential: Credential, url: object) -> None:
    parts = _split(url)
    scheme = parts.scheme.lower() if parts is not None else ""
    usual = _ENCRYPTED.get(scheme)
    try:
        if parts is None or not (scheme in _ENCRYPTED or scheme in _PLAIN):
            raise ValueError
        if scheme in ("http", "https"):
            target = parse_target(parts.geturl())  # by the parser that sends it: no two can disagree
            host, port = target.host, target.port
        else:
            host = AWS if scheme == "s3" else str(canonical_host(parts.hostname or ""))
            port = (None if scheme == "s3" else parts.port) or usual or _PLAIN[scheme]
    except (ValueError, UrlNotAllowed):
        raise CredentialNotAllowed(f"credential {credential.name} may not be sent to an address like this") from None
    if (host, port) not in credential.hosts and not (port == usual and (host, None) in credential.hosts):
        shown = f"[{host}]" if ":" in host else host
        hint = "" if usual else "; unencrypted only where its hosts name the port"
        raise CredentialNotAllowed(f"credential {credential.name} may not be sent to {shown}:{port}{hint}")


def _split(url: object) -> SplitResult | None:
    """Split a URL; None for one that two parsers could read differently."""
    if not isinstance(url, str):
        return None
    try:
        require_plain(url)
        return urlsplit(url)
    except (ValueError, UrlNotAllowed):
        return None


def _entry(name: str, entry: str) -> tuple[str, int | None]:
    match = _ENTRY.fullmatch(entry.strip())
    try:
        if match is None:
            raise ValueError
        port = int(match["port"]) if match["port"] else None
        if port is not None and not 1 <= port <= 65535:
            raise ValueError
        return str(canonical_host(match["v6"] or match["host"])), port
    except (ValueError, UrlNotAllowed):
        raise CredentialUnusable(f"credential {name}: a host is not a name, an address or host:port") from None
