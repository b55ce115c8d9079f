"""Secrets at rest: sealed with a key that lies in a file, never beside them (Fernet: AES-128-CBC and HMAC-SHA256,
https://github.com/fernet/spec/blob/master/Spec.md).

Who has the catalogue, a dump of it or the broker's messages has no secret; who has the key file as well has them all.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from cryptography.fernet import Fernet, InvalidToken

from datamanager.errors import SecretsUnreadable
from datamanager.settings import Settings

OPEN, OPEN_OF_ROOT = 0o077, 0o037
"""Rights that a key file must not give: any to its group or to others. Of a file that root owns, and that is handed to
a service of another user so (a mounted secret), the group may read, as PostgreSQL has it with private keys.
"""
FILE = "the key file (DM_SECRETS_KEY, else secrets.key in DM_HOME)"
"""How errors call it: they are shown to clients, whom our paths don't concern."""


def is_open(mode: int, owner: int, user: int) -> bool:
    """Say whether a key file with this mode and owner can be read or changed by others than `user`, who reads it."""
    return bool(mode & (OPEN_OF_ROOT if owner == 0 and user != 0 else OPEN))


class Sealer:
    """Seals and opens with the key in `path`; safe to share between threads. The key is read at each use: it may be
    made by another process, and is needed seldom.

    `made_here`: a key that is missing is made, the first time that something is to be sealed. It is off where a setting
    names the file: hosts that share a catalogue need the same key, and each would make one of its own.
    """

    def __init__(self, path: Path, *, made_here: bool) -> None:
        self._path = path
        self._made_here = made_here

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Return the sealer that the settings mean; nothing is read or made yet."""
        return cls(settings.secrets_key_file, made_here=settings.secrets_key is None)

    def seal(self, value: Mapping[str, Any]) -> str:
        """Return `value`, which is JSON-able, as a text that cannot be read without the key.

        Raises: SecretsUnreadable when there is no key and none can be made.
        """
        return Fernet(self._key(making=True)).encrypt(json.dumps(value).encode()).decode("ascii")

    def open(self, blob: str) -> dict[str, Any]:
        """Return what was sealed. Raises: SecretsUnreadable when the key is missing, or another one."""
        try:
            plain = Fernet(self._key(making=False)).decrypt(blob.encode("ascii"))
        except (InvalidToken, UnicodeEncodeError):
            text = f"{FILE} is not the one that encrypted the secrets, or these were modified"
            raise SecretsUnreadable(f"{text}; hosts that share a catalogue need the same key") from None
        value: dict[str, Any] = json.loads(plain)
        return value

    def mark(self, text: str) -> str:
        """Return 64 hex digits that tell `text` from another one, and can't be guessed from without the key.

        Raises: SecretsUnreadable when there is no key and none can be made.
        """
        own = self.derived("dm mark")
        return hmac.new(own, text.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()

    def derived(self, purpose: str) -> bytes:
        """Return a key of 32 bytes for one purpose only: the key itself seals, and nothing else.

        Raises: SecretsUnreadable when there is no key and none can be made.
        """
        return hmac.digest(self._key(making=True), purpose.encode(), "sha256")

    def _key(self, *, making: bool) -> bytes:
        try:
            return self._read()
        except FileNotFoundError:
            if not making or not self._made_here:
                raise SecretsUnreadable(f"{FILE} is missing; only it can decrypt existing secrets") from None
        try:
            self._make()
            return self._read()
        except OSError as exc:
            raise SecretsUnreadable(f"{FILE} cannot be created: {exc.strerror}") from exc

    def _read(self) -> bytes:
        """Return the key. Raises: FileNotFoundError, SecretsUnreadable."""
        try:
            with self._path.open("rb") as file:
                found = os.fstat(file.fileno())
                key = file.read(1024).strip()
        except FileNotFoundError:
            raise
        except OSError as exc:
            raise SecretsUnreadable(f"{FILE} can't be read: {exc.strerror}") from exc
        if is_open(found.st_mode, found.st_uid, os.geteuid()):
            raise SecretsUnreadable(f"{FILE} is accessible to other users: chmod 600")
        try:
            Fernet(key)
        except ValueError:
            raise SecretsUnreadable(f"{FILE} contains no key: 32 bytes in URL-safe base64 are required") from None
        return key

    def _make(self) -> None:
        """Make the key, unless another process is quicker: the file shows up whole, or not at all."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        draft = self._path.with_name(f".{self._path.name}.{secrets.token_hex(8)}")
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(Fernet.generate_key() + b"\n")
                file.flush()
                os.fsync(file.fileno())
            with contextlib.suppress(FileExistsError):
                self._path.hardlink_to(draft)
        finally:
            draft.unlink()
