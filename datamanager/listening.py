"""Where a server may be reached from, and what that takes: authentication, and a connection that nobody reads along."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

REMOVED = {
    "DM_INSECURE_BIND": "an address that other hosts can reach takes DM_AUTH=required, and DM_TLS_CERT with DM_TLS_KEY "
    "or DM_TRUSTED_PROXY (docs/security.md)"
}
"""Settings of earlier versions, and what takes their place."""


def is_loopback(host: str) -> bool:
    """Return whether `host` is a loopback name or address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_address(text: str) -> Address | None:
    """Return an address, an IPv4 one also where IPv6 carries it (::ffff:…); None for anything else."""
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found


def read_networks(value: object) -> object:
    """Read the addresses and networks of a text, separated by commas; return anything else as it is.

    Raises: ValueError, which quotes the one that is wrong.
    """
    if not isinstance(value, str):
        return value
    try:
        return tuple(ipaddress.ip_network(part.strip()) for part in value.split(",") if part.strip())
    except ValueError as exc:
        raise ValueError(f"{exc}; addresses or networks such as 10.1.2.3 or 10.0.0.0/8 are wanted") from None


def is_within(address: Address | None, networks: Iterable[Network]) -> bool:
    """Say whether an address belongs to one of the networks."""
    return address is not None and any(address in network for network in networks)


def require_safe(host: str, *, authenticated: bool, tls: bool, proxies: Collection[Network]) -> None:
    """Refuse an API that strangers could use. Raises: ValueError, which names the settings that are missing.

    A proxy opens the API to other hosts, so behind one authentication is needed on loopback too.
    """
    if not authenticated and proxies:
        raise ValueError("trusted_proxy: a proxy opens the API to other hosts; set DM_AUTH=required too")
    if is_loopback(host):
        return
    missing = [] if authenticated else ["DM_AUTH=required"]
    if not tls and not proxies:
        missing.append("DM_TLS_CERT and DM_TLS_KEY, or DM_TRUSTED_PROXY (a proxy in front that has the certificate)")
    if missing:
        raise ValueError(
            f"host: {host} can be reached from other hosts; use 127.0.0.1, or set {', and '.join(missing)}"
        )
