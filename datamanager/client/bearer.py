"""The token that clients send: where it is found, and to whom it is sent."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import SecretStr
from requests import PreparedRequest
from requests.auth import AuthBase

from datamanager.errors import SettingsError
from datamanager.listening import is_loopback
from datamanager.settings import HOME, PREFIX, TOKEN, TOKEN_FILE

PLACES = f"set {TOKEN}, or {PREFIX}HOME to the folder on this host that has its {TOKEN_FILE}"
"""What gives `find_token` one."""


class BearerAuth(AuthBase):
    """Adds a token to requests (RFC 6750). As the `auth` of a session it is not replaced by what a netrc file says, and
    `requests` takes it away where a redirect leads to another host.
    """

    def __init__(self, token: SecretStr) -> None:
        self._token = token

    def __call__(self, request: PreparedRequest) -> PreparedRequest:
        """Add it."""
        request.headers["Authorization"] = f"Bearer {self._token.get_secret_value()}"
        return request


def find_token(url: str) -> SecretStr | None:
    """Return the token for the service at `url`: DM_TOKEN, else, for one on this host, what `dm up` has written into
    DM_HOME; None where there is none.

    Raises: SettingsError when DM_TOKEN would be sent to another host without TLS.
    """
    given = os.environ.get(TOKEN, "").strip()
    if given:
        return require_safe(SecretStr(given), url)
    if not _is_own(url):
        return None
    home = Path(os.environ.get(f"{PREFIX}HOME") or HOME).expanduser()
    try:
        return SecretStr((home / TOKEN_FILE).read_text(encoding="ascii").strip())
    except (OSError, UnicodeDecodeError):
        return None  # there is none, or it is another user's: the service says what it requires


def require_safe(token: SecretStr, url: str) -> SecretStr:
    """Return the token. Raises: SettingsError when it would be sent to another host without TLS."""
    if urlsplit(url).scheme != "https" and not _is_own(url):
        raise SettingsError(f"{url}: a token is sent to another host by https only")
    return token


def _is_own(url: str) -> bool:
    return is_loopback(urlsplit(url).hostname or "")
