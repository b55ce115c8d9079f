"""What a proxy in front says of its client: X-Forwarded-For and X-Forwarded-Proto, of declared proxies only.

Each proxy adds to the end of X-Forwarded-For the address that it was asked from, so the list is read from its end: the
first address that is no declared proxy's is the client's. What stands before it was written by that client, and nobody
looks at it. The headers of others are taken away.
"""

from __future__ import annotations

from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from datamanager.listening import Address, Network, is_loopback, is_within, read_address
from datamanager.settings import Settings

FORWARDED = frozenset({b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"forwarded"})
SCHEMES = ("http", "https")


class ForwardedMiddleware:
    """ASGI middleware that puts the client's address and scheme in the place of a declared proxy's."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self.proxies = settings.trusted_proxy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] == "http":
            scope = as_sent(scope, self.proxies)
        await self.app(scope, receive, send)


def as_sent(scope: Scope, proxies: Collection[Network]) -> Scope:
    """Return the scope with the client's address and scheme, without the headers of proxies."""
    kept = [header for header in scope["headers"] if header[0] not in FORWARDED]
    if not proxies or not is_within(peer_of(scope), proxies):
        return scope if len(kept) == len(scope["headers"]) else {**scope, "headers": kept}
    headers = Headers(scope=scope)
    scheme = _listed(headers, "x-forwarded-proto")[-1:]
    changed: Scope = {**scope, "headers": kept}
    changed["scheme"] = scheme[0] if scheme and scheme[0] in SCHEMES else "http"
    client = _client(_listed(headers, "x-forwarded-for"), proxies)
    if client is not None:
        changed["client"] = (str(client), 0)
    return changed


def peer_of(scope: Scope) -> Address | None:
    """Return the address that a request comes from."""
    return read_address(str((scope.get("client") or ("",))[0]))


def is_readable(scope: Scope, settings: Settings) -> bool:
    """Say whether a request came over a network without TLS: to a port that other hosts reach, and not from here."""
    if scope["scheme"] == "https" or is_loopback(settings.host):
        return False
    return not is_loopback(str(peer_of(scope)))


def _listed(headers: Headers, name: str) -> list[str]:
    return [part.strip().lower() for part in ",".join(headers.getlist(name)).split(",") if part.strip()]


def _client(chain: list[str], proxies: Collection[Network]) -> Address | None:
    """Return the last address that is no proxy's; the last one before anything else than an address."""
    found = None
    for entry in reversed(chain):
        address = _without_port(entry)
        if address is None:
            break
        found = address
        if not is_within(address, proxies):
            break
    return found


def _without_port(entry: str) -> Address | None:
    """Read `address`, `address:port` or `[address]:port`."""
    if entry.startswith("["):
        return read_address(entry[1:].partition("]")[0])
    return read_address(entry) or read_address(entry.rpartition(":")[0])
