"""The built-in certificate authority: an Ed25519 key in a file that only its owner can read."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterable
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization.ssh import SSHCertificateBuilder, SSHCertificateType

from datamanager.errors import SettingsError
from datamanager.sealing import is_open
from datamanager.signing.certificate import Certificate, CertificateRequest, checked

_MOST_KEY = 16384
_KRL_MAGIC, _KRL_FORMAT = b"SSHKRL\n\0", 1
_SECTION_CERTIFICATES, _SECTION_SERIALS = 1, 0x20


def create_key(path: Path) -> None:
    """Make a CA key, exclusively, with mode 0600. Raises: SettingsError, also when a file is there already."""
    data = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as exc:
        raise SettingsError(f"the CA's key file can't be made: {exc.strerror}") from exc


class BuiltinCa:
    """Signs with the key in a file, which is read once. Raises: SettingsError when it can't be used, or is open to
    others.
    """

    def __init__(self, path: Path) -> None:
        try:
            with path.open("rb") as file:
                found = os.fstat(file.fileno())
                data = file.read(_MOST_KEY)
        except OSError as exc:
            raise SettingsError(f"the CA's key file can't be read: {exc.strerror}") from exc
        if is_open(found.st_mode, found.st_uid, os.geteuid()):
            raise SettingsError("the CA's key file is accessible to other users: chmod 600")
        try:
            key = serialization.load_ssh_private_key(data, None)
        except (ValueError, TypeError):
            raise SettingsError("the CA's key file contains no OpenSSH key without a passphrase") from None
        if not isinstance(key, Ed25519PrivateKey):
            raise SettingsError("the CA's key must be an Ed25519 key")
        self._key = key

    def sign(self, request: CertificateRequest) -> Certificate:
        """Return the certificate; see Signer."""
        builder = (
            SSHCertificateBuilder()
            .public_key(request.public_key)
            .serial(request.serial)
            .type(SSHCertificateType.USER)
            .key_id(request.key_id.encode())
            .valid_principals([request.principal.encode()])
            .valid_after(int(request.valid_after.timestamp()))
            .valid_before(int(request.valid_before.timestamp()))
        )
        for name, value in request.critical_options.items():
            builder = builder.add_critical_option(name.encode(), value.encode())
        return checked(builder.sign(self._key).public_bytes().decode("ascii"), request)

    @property
    def public_line(self) -> str:
        """The public half: the line for the file that sshd's TrustedUserCAKeys names."""
        key = self._key.public_key()
        raw = key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
        return raw.decode("ascii") + " datamanager-ca"

    def revocation_list(self, serials: Iterable[int]) -> bytes:
        """Return a KRL of these serials for sshd's RevokedKeys (OpenSSH's PROTOCOL.krl)."""
        public = self._key.public_key().public_bytes_raw()
        blob = _string(b"ssh-ed25519") + _string(public)
        listed = b"".join(struct.pack(">Q", serial) for serial in sorted(set(serials)))
        section = _string(blob) + _string(b"")
        if listed:
            section += bytes([_SECTION_SERIALS]) + _string(listed)
        now = int(time.time())
        head = _KRL_MAGIC + struct.pack(">LQQQ", _KRL_FORMAT, now, now, 0) + _string(b"") + _string(b"datamanager")
        return head + bytes([_SECTION_CERTIFICATES]) + _string(section)


def sshd_lines(public_file: str) -> str:
    """Return the lines of sshd_config that trust the CA whose public half is in this file on the machine."""
    return f"TrustedUserCAKeys {public_file}\n"


def _string(data: bytes) -> bytes:
    return struct.pack(">L", len(data)) + data
