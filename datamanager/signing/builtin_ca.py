"""The built-in certificate authority: a key in a file that only its owner can read.

ECDSA unless a site makes another key: each side of a login verifies the certificate several times, and OpenSSH's own
Ed25519 takes 1.4 ms of CPU each time, OpenSSL's P-256 a tenth.
"""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization.ssh import SSHCertificateBuilder, SSHCertificateType

from datamanager.errors import SettingsError
from datamanager.sealing import is_open
from datamanager.signing.certificate import Certificate, CertificateRequest, checked

_MOST_KEY = 16384


def create_key(path: Path) -> None:
    """Make a CA key, exclusively, with mode 0600. Raises: SettingsError, also when a file is there already."""
    data = ec.generate_private_key(ec.SECP256R1()).private_bytes(
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
        if not isinstance(key, Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
            raise SettingsError("the CA's key must be an ECDSA, Ed25519 or RSA key")
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


def sshd_lines(public_file: str, revoked_file: str | None = None) -> str:
    """Return the lines of sshd_config that trust the CA whose public half is in this file on the machine, except for
    the certificates that the other one revokes.
    """
    revoked = "" if revoked_file is None else f"RevokedKeys {revoked_file}\n"
    return f"TrustedUserCAKeys {public_file}\n{revoked}"
