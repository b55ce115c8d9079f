"""known_hosts files as OpenSSH reads them (sshd(8), "SSH_KNOWN_HOSTS FILE FORMAT"): whose key a host may show.

Paramiko's own HostKeys drops markers, so that a revoked key would count as known; hence an own reader.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import fnmatch
import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

SSH_PORT = 22
DEFAULT_FILES = (Path("~/.ssh/known_hosts"), Path("~/.ssh/known_hosts2"), Path("/etc/ssh/ssh_known_hosts"))
"""The user's and the system's; a `~` is still to be expanded."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line: its marker (`@revoked`, `@cert-authority` or none), whom it means, and the key."""

    marker: str
    hosts: str
    type: str
    key: bytes


def entry_name(host: str, port: int) -> str:
    """Return the name under which a host stands there: `host`, or `[host]:port` for another port than 22."""
    return host if port == SSH_PORT else f"[{host}]:{port}"


def lines_for(name: str, files: Iterable[Path]) -> list[Line]:
    """Return the lines of these files that mean `name`; a file that is not there has none."""
    return [line for file in files for line in _read(file) if matches(line.hosts, name)]


def parse(content: bytes) -> list[Line]:
    """Return the lines that hold a key; comments, blank and broken lines count for nothing, as with ssh."""
    lines: list[Line] = []
    for text in content.decode("utf-8", "replace").splitlines():
        fields = text.split()
        marker = fields.pop(0) if fields and fields[0].startswith("@") else ""
        if len(fields) < 3 or fields[0].startswith("#"):
            continue
        with contextlib.suppress(binascii.Error):
            lines.append(Line(marker, fields[0], fields[1], base64.b64decode(fields[2], validate=True)))
    return lines


def matches(hosts: str, name: str) -> bool:
    """Say whether a line's host field means this name: hashed, or patterns with `*`, `?` and `!` that exclude."""
    if hosts.startswith("|1|"):
        return _hash_matches(hosts, name)
    found = False
    for pattern in hosts.lower().split(","):
        # `[` is an ordinary character here, not a set as with fnmatch
        if fnmatch.fnmatchcase(name, pattern.lstrip("!").replace("[", "[[]")):
            if pattern.startswith("!"):
                return False
            found = True
    return found


def signature_algorithms(key_type: str) -> list[str]:
    """Return the signature algorithms of a key type: an RSA key signs with SHA-2 (RFC 8332)."""
    return ["rsa-sha2-512", "rsa-sha2-256"] if key_type == "ssh-rsa" else [key_type]


def fingerprint(key: bytes) -> str:
    """Return a public key's fingerprint as ssh shows it: `SHA256:…`."""
    digest = base64.b64encode(hashlib.sha256(key).digest()).decode("ascii").rstrip("=")
    return f"SHA256:{digest}"


def _read(file: Path) -> list[Line]:
    try:
        return parse(file.read_bytes())
    except FileNotFoundError:
        return []


def _hash_matches(hosts: str, name: str) -> bool:
    try:
        _, _, salt, digest = hosts.split("|")
        wanted = base64.b64decode(digest)
        return hmac.compare_digest(hmac.new(base64.b64decode(salt), name.encode(), "sha1").digest(), wanted)
    except (ValueError, binascii.Error):
        return False
