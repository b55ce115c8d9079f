"""Service tokens: `dm_`, an id, a secret and a checksum, in letters and digits.

Scanners know them by the prefix and tell a real one by the checksum, without asking anybody; a double click selects all
of it. The form is that of GitHub's (https://github.blog/2021-04-05-behind-githubs-new-authentication-token-formats/).
The service stores only an HMAC-SHA-256 of a token, so that its catalogue contains nothing to log in with.
"""

from __future__ import annotations

import hmac
import re
import secrets
import string
import zlib
from dataclasses import dataclass, field
from typing import Self

from datamanager.errors import NotAuthenticated

PREFIX = "dm_"
ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase
ID_LENGTH, SECRET_LENGTH, CHECKSUM_LENGTH = 12, 32, 6
"""Characters; 32 have 190 bits."""
KEY_MIN = 32
"""Bytes of a key."""
_FORM = re.compile(
    rf"{PREFIX}([0-9A-Za-z]{{{ID_LENGTH}}})([0-9A-Za-z]{{{SECRET_LENGTH}}})([0-9A-Za-z]{{{CHECKSUM_LENGTH}}})"
)


@dataclass(frozen=True, slots=True)
class ServiceToken:
    """A token: `identifier` may be shown, `secret` never; only `reveal` does."""

    identifier: str
    secret: str = field(repr=False)

    @classmethod
    def make(cls) -> Self:
        """Return a new one."""
        return cls(_random(ID_LENGTH), _random(SECRET_LENGTH))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a token; nothing is looked up.

        Raises: NotAuthenticated when it hasn't the form of one, or its checksum is wrong; the detail says which.
        """
        found = _FORM.fullmatch(text)
        if found is None:
            raise NotAuthenticated("this is no service token: it is incomplete, or has other characters")
        token = cls(found[1], found[2])
        if _checksum(token.identifier + token.secret) != found[3]:
            raise NotAuthenticated("the service token's checksum is wrong: it is not copied as it was printed")
        return token

    def reveal(self) -> str:
        """Return its text. It is shown once, when it is made, and never logged."""
        body = self.identifier + self.secret
        return f"{PREFIX}{body}{_checksum(body)}"

    def digest(self, key: bytes) -> str:
        """Return what is stored of it: 64 hex digits. Raises: ValueError for a key that is too short."""
        if len(key) < KEY_MIN:
            raise ValueError(f"a key has at least {KEY_MIN} bytes")
        return hmac.digest(key, self.reveal().encode("ascii"), "sha256").hex()

    def matches(self, key: bytes, stored: str | None) -> bool:
        """Say whether `stored` is its digest, in the same time whether it is, is not, or is None (no such token)."""
        return hmac.compare_digest(self.digest(key).encode(), (stored or "-" * 64).encode())


def is_service_token(text: str) -> bool:
    """Say whether a bearer token is meant to be one of ours."""
    return text.startswith(PREFIX)


def _random(length: int) -> str:
    return "".join(secrets.choice(ALPHABET) for _ in range(length))


def _checksum(body: str) -> str:
    number, digits = zlib.crc32(body.encode("ascii")), ""
    while len(digits) < CHECKSUM_LENGTH:
        number, digit = divmod(number, len(ALPHABET))
        digits = ALPHABET[digit] + digits
    return digits
