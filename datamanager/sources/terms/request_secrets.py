"""Which parts of a request are secret, and how they are stored apart from it.

The request is stored, shown and sent without them; they are sealed (`datamanager.sealing`), and put back when the
source is opened.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from typing import Any, get_args
from urllib.parse import unquote_plus

from pydantic import SecretStr

from datamanager.domain.requests import GetExternalRequest
from datamanager.errors import NotSupported
from datamanager.sealing import Sealer
from datamanager.sources.terms.source_options import every_model, refuse_unknown
from datamanager.sources.terms.urls import public_url

HIDDEN = "***"
"""What stands in a request where a secret was."""

_PAIRS = re.compile("[&;]")
_BETWEEN_WORDS = re.compile("[-_. ]")
_SECRET_NAME = re.compile(
    "token|passw|passphrase|secret|signature|credential|authorization|apikey|accesskey|session|jwt"
    r"|^(?:x)?(?:key|sig|auth|pwd|pass|pw)$"
)

Secrets = dict[str, Any]
"""JSON-able: `url` as a whole, which binds them to it, and the `options` that hold secrets."""


def parted(request: GetExternalRequest) -> tuple[GetExternalRequest, Secrets | None]:
    """Return the request without secrets, and the secrets; None when it has none.

    Queries of URLs count as secrets: they hold tokens and signatures. An unknown option counts too.
    """
    hidden: Secrets = {}
    options: dict[str, Any] = {}
    for name, value in request.options.items():
        shown = _without_queries(value) if name in _public() else _hidden(value)
        options[name] = shown
        if name not in _public() or shown != value:
            hidden[name] = value
    url = public_url(request.url) if any(mark in request.url for mark in "?@#") else request.url
    if not hidden and url == request.url:
        return request, None
    return request.model_copy(update={"url": url, "options": options}), {"url": request.url, "options": hidden}


def joined(request: GetExternalRequest, secrets: Secrets) -> GetExternalRequest:
    """Return the request with its secrets put back."""
    return request.model_copy(update={"url": secrets["url"], "options": {**request.options, **secrets["options"]}})


def sealed(request: GetExternalRequest, sealer: Sealer) -> tuple[GetExternalRequest, str | None]:
    """Return the request without its secrets, and the secrets sealed. Raises: SecretsUnreadable."""
    shown, secrets = parted(request)
    return shown, None if secrets is None else sealer.seal(secrets)


def mark_of(secrets: Secrets, text: str, sealer: Sealer) -> str:
    """Return a keyed digest of `text` and secrets, from which nothing can be guessed without the key.

    Raises: SecretsUnreadable.
    """
    return sealer.mark(text + "\0" + json.dumps(secrets, sort_keys=True))


def refuse_secrets(options: Mapping[str, Any], where: str, url: str = "") -> None:
    """Refuse options that hold secrets where they can't be stored, and a `url` with parameters named like a secret.

    Raises: NotSupported, which names each; InvalidRequest for options that no protocol has.
    """
    refuse_unknown(options)
    wrong = [f"options.{name}" for name in secret_names(options)]
    wrong += [f"parameter {name} of url" for name in secret_parameters(url)]
    if wrong:
        names = ", ".join(wrong)
        raise NotSupported(f"{names}: secrets are not accepted {where}; give the name of a stored credential instead")


def secret_names(options: Mapping[str, Any]) -> list[str]:
    """Return the names of options that hold secrets, or may: unknown ones, and URLs with credentials or queries."""
    return [name for name, value in options.items() if name not in _public() or _without_queries(value) != value]


def secret_parameters(url: str) -> list[str]:
    """Return the names in a URL's query that are those of passwords, tokens, keys and signatures.

    A query may be as harmless as a date, so it is judged by its names; a secret with another name is not found.
    """
    query = url.partition("#")[0].partition("?")[2]
    names = [unquote_plus(pair.partition("=")[0])[:100] for pair in _PAIRS.split(query)]
    return [name for name in dict.fromkeys(names) if _SECRET_NAME.search(_BETWEEN_WORDS.sub("", name.lower()))]


@cache
def _public() -> frozenset[str]:
    """Return the names of options without secrets: those that hold none with any protocol."""
    fields = [one for model in every_model() for one in model.model_fields.items()]
    return frozenset(name for name, _ in fields) - {name for name, field in fields if _is_secret(field.annotation)}


def _is_secret(annotation: Any) -> bool:
    return annotation is SecretStr or any(_is_secret(part) for part in get_args(annotation))


def _hidden(value: object) -> object:
    return dict.fromkeys(value, HIDDEN) if isinstance(value, dict) else HIDDEN


def _without_queries(value: Any) -> Any:
    """Return a URL, or a list of them, without user, password and query."""
    if isinstance(value, list | tuple):
        return [_without_queries(one) for one in value]
    if isinstance(value, str) and "://" in value and any(mark in value for mark in "?@#"):
        return public_url(value)
    return value
