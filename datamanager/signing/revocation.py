"""Revocation lists for sshd's RevokedKeys (OpenSSH's PROTOCOL.krl)."""

from __future__ import annotations

import base64
import struct
import time
from collections.abc import Iterable

_MAGIC, _FORMAT = b"SSHKRL\n\0", 1
_CERTIFICATES, _SERIALS, _KEYS = 1, 0x20, 2


def revocation_list(ca_line: str, serials: Iterable[int], *, whole: bool = False) -> bytes:
    """Return a list of certificates by their serials, of the authority whose public half is this line of OpenSSH;
    `whole`: of all that it has ever signed.
    """
    ca = base64.b64decode(ca_line.split()[1])
    listed = b"".join(struct.pack(">Q", serial) for serial in sorted(set(serials)))
    section = _string(ca) + _string(b"")
    if listed:
        section += bytes([_SERIALS]) + _string(listed)
    now = int(time.time())
    head = _MAGIC + struct.pack(">LQQQ", _FORMAT, now, now, 0) + _string(b"") + _string(b"datamanager")
    keys = bytes([_KEYS]) + _string(_string(ca)) if whole else b""
    return head + bytes([_CERTIFICATES]) + _string(section) + keys


def _string(data: bytes) -> bytes:
    return struct.pack(">L", len(data)) + data
