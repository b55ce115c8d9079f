"""Vault's or OpenBao's SSH secrets engine as the signer: `sign/<role>` and `public_key` below `/v1/<mount>`."""

from __future__ import annotations

import http.client
import json
import os
import ssl
from pathlib import Path
from urllib.parse import quote, urlsplit

from datamanager.errors import SettingsError, SigningFailed, SigningUnavailable
from datamanager.sealing import is_open
from datamanager.signing.certificate import VALIDITY, Certificate, CertificateRequest, checked

_MOST_ANSWER, _MOST_TOKEN = 65536, 4096
_OK, _SERVER_ERROR = 200, 500
_KEY_WORDS = 2


class VaultSigner:
    """Asks a server at `url`; the token is read from its file at each request, for it may be renewed.

    `ca_file`: what the server's certificate is checked with instead of the system's authorities. `timeout` is the
    seconds that a connection, or a silence, may take. Raises: SettingsError; plain HTTP is for loopback only.
    """

    def __init__(
        self,
        url: str,
        role: str,
        token_file: Path,
        *,
        mount: str = "ssh",
        ca_file: Path | None = None,
        timeout: float = 5,
    ) -> None:
        parts = urlsplit(url)
        loopback = parts.hostname in {"127.0.0.1", "::1", "localhost"}
        if not parts.hostname or not (parts.scheme == "https" or (parts.scheme == "http" and loopback)):
            raise SettingsError("the signer's URL must begin with https://")
        self._host, self._port = parts.hostname, parts.port
        self._engine = f"{parts.path.rstrip('/')}/v1/{quote(mount)}"
        self._role = quote(role, safe="")
        self._token_file = token_file
        self._timeout = timeout
        try:
            self._tls = ssl.create_default_context(cafile=ca_file) if parts.scheme == "https" else None
        except OSError as exc:  # SSLError is one
            raise SettingsError("the file of the signer's authorities can't be used") from exc

    def sign(self, request: CertificateRequest) -> Certificate:
        """Return the certificate; see Signer. The serial is the server's."""
        body = {
            "public_key": request.public_line,
            "cert_type": "user",
            "valid_principals": request.principal,
            "key_id": request.key_id,
            "ttl": f"{int(VALIDITY.total_seconds())}s",
            "critical_options": request.critical_options,
            "extensions": {},
        }
        answer = self._call("POST", f"sign/{self._role}", json.dumps(body).encode())
        try:
            line = json.loads(answer)["data"]["signed_key"]
        except (ValueError, KeyError, TypeError) as exc:
            raise SigningFailed("the signer's answer has no certificate") from exc
        if not isinstance(line, str):
            raise SigningFailed("the signer's answer has no certificate")
        return checked(line, request)

    @property
    def public_line(self) -> str:
        """The public half of the server's authority. Raises: as `sign`."""
        try:
            words = self._call("GET", "public_key").decode("ascii").split()
        except UnicodeDecodeError:
            words = []
        if len(words) < _KEY_WORDS:
            raise SigningFailed("the signer's answer has no public key")
        return " ".join(words[:_KEY_WORDS])

    def _call(self, method: str, path: str, body: bytes | None = None) -> bytes:
        headers = {"X-Vault-Token": self._token(), "X-Vault-Request": "true", "Content-Type": "application/json"}
        if self._tls is None:
            connection = http.client.HTTPConnection(self._host, self._port, timeout=self._timeout)
        else:
            connection = http.client.HTTPSConnection(self._host, self._port, timeout=self._timeout, context=self._tls)
        try:
            connection.request(method, f"{self._engine}/{path}", body, headers)
            response = connection.getresponse()
            answer = response.read(_MOST_ANSWER + 1)
        except (OSError, http.client.HTTPException) as exc:
            raise SigningUnavailable(f"the signer can't be reached: {type(exc).__name__}") from exc
        finally:
            connection.close()
        if response.status >= _SERVER_ERROR:
            raise SigningUnavailable(f"the signer answered with status {response.status}")
        if response.status != _OK:  # its text may quote the request
            raise SigningFailed(f"the signer refused with status {response.status}")
        if len(answer) > _MOST_ANSWER:
            raise SigningFailed("the signer's answer is too long")
        return answer

    def _token(self) -> str:
        try:
            with self._token_file.open("rb") as file:
                found = os.fstat(file.fileno())
                token = file.read(_MOST_TOKEN).decode("ascii").strip()
        except (OSError, UnicodeDecodeError) as exc:
            raise SettingsError("the signer's token file can't be read") from exc
        if is_open(found.st_mode, found.st_uid, os.geteuid()):
            raise SettingsError("the signer's token file is accessible to other users: chmod 600")
        if not token.isprintable() or not token:
            raise SettingsError("the signer's token file contains no token")
        return token
