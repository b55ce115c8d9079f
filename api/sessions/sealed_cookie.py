"""What a browser keeps for us and can neither read nor change, for one purpose."""

from __future__ import annotations

import base64
import json
import zlib
from functools import cached_property
from typing import Any

from cryptography.fernet import Fernet, InvalidToken

from datamanager.sealing import Sealer


class SealedCookie:
    """Seals and opens the values of one cookie, with a key of its own: none can be used as another one. A value can be
    opened for `seconds` (None: its content says how long).
    """

    def __init__(self, sealer: Sealer, purpose: str, seconds: int | None = None) -> None:
        self._sealer = sealer
        self._purpose = purpose
        self._seconds = seconds

    def seal(self, content: dict[str, Any]) -> str:
        """Return a cookie's value. Raises: SecretsUnreadable."""
        sealed = self._fernet.encrypt(zlib.compress(json.dumps(content).encode()))
        return sealed.decode("ascii").rstrip("=")  # it would be quoted

    def unseal(self, value: str) -> dict[str, Any] | None:
        """Return what was sealed; None for anything else. Raises: SecretsUnreadable."""
        padded = value + "=" * (-len(value) % 4)
        try:
            plain = self._fernet.decrypt(padded.encode("ascii"), self._seconds)
        except (InvalidToken, UnicodeEncodeError):
            return None
        content: dict[str, Any] = json.loads(zlib.decompress(plain))
        return content

    @cached_property
    def _fernet(self) -> Fernet:
        return Fernet(base64.urlsafe_b64encode(self._sealer.derived(self._purpose)))
