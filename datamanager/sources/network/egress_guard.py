"""Which hosts and ports a download may reach, decided by address and before a byte is sent.

A name is resolved once, every answer is checked, and the caller connects to the checked addresses only: a name that
resolves differently the next time (DNS rebinding) changes nothing. Without an entry in DM_DOWNLOAD_ALLOW only public
addresses and a few ports are open.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from datamanager.errors import SettingsError, UrlNotAllowed
from datamanager.sources.terms.urls import Address, canonical_host

Resolve = Callable[[str, int], Sequence[str]]
"""Maps a host name and port to every address of the name; raises OSError or UnicodeError when there is none."""

PUBLIC_PORTS = frozenset({21, 22, 80, 443, 990})

_ENTRY = re.compile(
    r"\[(?P<v6>[^\]]+)\](?P<length>/[0-9]+)?(:(?P<v6port>[0-9]+))?"
    r"|(?P<host>[^:\[\]]+)(:(?P<port>[0-9]+))?"
)
_V6_NETWORK = re.compile(r"(?P<net>[0-9a-fA-F:.]*:[0-9a-fA-F:.]*/[0-9]+)(:(?P<port>[0-9]+))?")

_GLOBAL_UNICAST = IPv6Network("2000::/3")
_NAT64 = IPv6Network("64:ff9b::/96")
_NAT64_LOCAL = IPv6Network("64:ff9b:1::/48")
_6TO4 = IPv6Network("2002::/16")
_TEREDO = IPv6Network("2001::/32")
_LAST_32_BITS = (
    _NAT64,
    IPv6Network("::/96"),  # IPv4-compatible (RFC 4291, 2.5.5.1)
    IPv6Network("::ffff:0:0/96"),  # IPv4-mapped
    IPv6Network("::ffff:0:0:0/96"),  # IPv4-translated: SIIT (RFC 2765)
)
_ISATAP = (0x00005EFE, 0x02005EFE)
# Written out because `is_global` differs between patch levels of Python 3.11: IANA's special-purpose registries
# (RFC 6890), the tunnels 6to4 and Teredo, whose addresses hide an IPv4 one, and Azure's host agent, which has a public
# address.
_NEVER_PUBLIC: tuple[IPv4Network | IPv6Network, ...] = tuple(
    ipaddress.ip_network(text)
    for text in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24"),
        *("192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16", "192.175.48.0/24"),
        *("198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4", "168.63.129.16/32"),
        *("2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20"),
    )
)


def is_public(address: Address) -> bool:
    """Say whether `address` is one of the public internet; one that carries an IPv4 address is judged by that too."""
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None or address in _NAT64:
            return all(is_public(carried) for carried in carried_by(address))
        if address.scope_id is not None or address not in _GLOBAL_UNICAST:
            return False
    if address.is_multicast or address.is_reserved or address.is_unspecified or not address.is_global:
        return False
    return not any(address in network for network in _NEVER_PUBLIC)


def carried_by(address: Address) -> list[IPv4Address]:
    """Return the IPv4 addresses to which a gateway or tunnel would connect for an IPv6 address; none for most.

    Mapped and compatible (RFC 4291), translated (SIIT, RFC 2765), NAT64 (RFC 6052; of the local-use prefix of RFC 8215
    as /48 and as /96), 6to4 (RFC 3056), ISATAP (RFC 5214) and Teredo (RFC 4380: server and client).
    """
    if isinstance(address, IPv4Address):
        return []
    bits = int(address)
    found = list[int]()
    if any(address in network for network in _LAST_32_BITS) or bits >> 32 & 0xFFFFFFFF in _ISATAP:
        found.append(bits)
    if address in _NAT64_LOCAL:
        found += [bits, bits >> 48 & 0xFFFF0000 | bits >> 40 & 0xFFFF]  # bits 64 to 71 are not part of it
    if address in _6TO4:
        found.append(bits >> 80)
    if address in _TEREDO:
        found += [bits >> 64, ~bits]
    return [IPv4Address(one & 0xFFFFFFFF) for one in found]


def system_resolve(host: str, port: int) -> list[str]:
    """Ask the system's resolver for every address of `host`. Raises: OSError, UnicodeError."""
    answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(answer[4][0]) for answer in answers]


@dataclass(frozen=True, slots=True)
class _Entry:
    """One entry of DM_DOWNLOAD_ALLOW or DM_DOWNLOAD_DENY; `what` None means every host, `port` None every port."""

    what: str | IPv4Network | IPv6Network | None
    port: int | None

    def denies_name(self, name: str, port: int) -> bool:
        """Say whether a name is denied, by itself or by a domain above it."""
        if self.port not in (None, port) or not isinstance(self.what, str | None):
            return False
        return self.what is None or name == self.what or name.endswith(f".{self.what}")

    def denies_address(self, address: Address, port: int) -> bool:
        """Say whether an address is denied, or an IPv4 address that it carries."""
        if self.port not in (None, port):
            return False
        return self.what is None or any(self.allows_address(one, port) for one in (address, *carried_by(address)))

    def allows_name(self, name: str, port: int) -> bool:
        return self.what == name and self.port in (None, port)

    def allows_address(self, address: Address, port: int) -> bool:
        if self.what is None or isinstance(self.what, str):
            return False
        return address in self.what and self.port in (None, port)


class EgressGuard:
    """Decides which hosts and ports a download may reach. Immutable, safe to share between threads.

    `allow` are the entries of DM_DOWNLOAD_ALLOW: a host name, an address or a network in CIDR form, with `:port` or
    without (all ports); IPv6 with a port is written `[v6]:port`. A name allows whatever it resolves to. `deny` are
    those of DM_DOWNLOAD_DENY, and win: a name with all names below it, a network whatever name resolves to it, `:port`
    on every host.

    Raises: SettingsError for an entry that can't be read.
    """

    def __init__(
        self, allow: Sequence[str] = (), deny: Sequence[str] = (), *, resolve: Resolve = system_resolve
    ) -> None:
        self._entries = tuple(_parse_entry(entry, "DM_DOWNLOAD_ALLOW") for entry in allow)
        self._denied = tuple(_parse_entry(entry, "DM_DOWNLOAD_DENY") for entry in deny)
        self._resolve = resolve

    def check(self, host: str, port: int) -> list[Address]:
        """Return the addresses of `host`, in the resolver's order; connect to one of them and to nothing else.

        The name is resolved exactly once. Blocks as long as the resolver does.

        Raises: UrlNotAllowed when the host is odd, does not resolve, or any of its addresses or the port is not open.
        Its `retryable` is set when the resolver itself did not answer.
        """
        if not 1 <= port <= 65535:
            raise UrlNotAllowed(f"port {port} is not allowed")
        canonical = canonical_host(host)
        addresses: list[Address] = [] if isinstance(canonical, str) else [canonical]
        self.refuse_denied(str(canonical), port, addresses)
        if isinstance(canonical, str):
            addresses = self._addresses(canonical, port)
            self.refuse_denied(canonical, port, addresses)
            if any(entry.allows_name(canonical, port) for entry in self._entries):
                return addresses
        for address in addresses:
            if any(entry.allows_address(address, port) for entry in self._entries):
                continue
            # The error does not name the address: it would show names of the inner network to any client.
            if not is_public(address):
                raise UrlNotAllowed(f"host {host!r} has an address that is not public (DM_DOWNLOAD_ALLOW can allow it)")
            if port not in PUBLIC_PORTS:
                raise UrlNotAllowed(f"port {port} of host {host!r} is not allowed (DM_DOWNLOAD_ALLOW can allow it)")
        return addresses

    def refuse_denied(self, host: str, port: int, addresses: Sequence[Address]) -> None:
        """Refuse what DM_DOWNLOAD_DENY denies; also for a further connection to a checked host, to a port that its
        server chose. `host` is canonical. Raises: UrlNotAllowed.
        """
        if any(
            entry.denies_name(host, port) or any(entry.denies_address(address, port) for address in addresses)
            for entry in self._denied
        ):
            raise UrlNotAllowed(f"port {port} of host {host!r} is denied (DM_DOWNLOAD_DENY)")

    def _addresses(self, name: str, port: int) -> list[Address]:
        try:
            answers = [ipaddress.ip_address(text) for text in self._resolve(name, port)]
        except (OSError, ValueError) as exc:  # UnicodeError is a ValueError
            away = isinstance(exc, socket.gaierror) and exc.errno == socket.EAI_AGAIN
            raise UrlNotAllowed(f"host {name!r} does not resolve", retryable=away) from exc
        if not answers:
            raise UrlNotAllowed(f"host {name!r} does not resolve")
        plain = (getattr(answer, "ipv4_mapped", None) or answer for answer in answers)
        return list(dict.fromkeys(plain))


def _parse_entry(entry: str, setting: str) -> _Entry:
    text = entry.strip()
    ports = setting == "DM_DOWNLOAD_DENY"
    try:
        if ports and re.fullmatch(r":[0-9]{1,5}", text) and 1 <= int(text[1:]) <= 65535:
            return _Entry(None, int(text[1:]))
        what, port = _split_entry(text)
        if port is not None and not 1 <= port <= 65535:
            raise ValueError("the port must be 1 to 65535")
        return _Entry(what, port)
    except (ValueError, UrlNotAllowed) as exc:
        wanted = "a host, an address or a network (10.0.0.0/8), with :port or without; IPv6 with a port as [v6]:port"
        wanted += ", or :port" if ports else ""
        raise SettingsError(f"{setting}: {entry!r} must be {wanted} ({exc})") from exc


def _split_entry(text: str) -> tuple[str | IPv4Network | IPv6Network, int | None]:
    """Return what an entry names, and its port. Raises: ValueError, UrlNotAllowed."""
    if "[" not in text and text.count(":") > 1:
        if match := _V6_NETWORK.fullmatch(text):
            return ipaddress.ip_network(match["net"]), _port(match["port"])
        return IPv6Network(text), None
    match = _ENTRY.fullmatch(text)
    if match is None:
        raise ValueError("not understood")
    if match["v6"] is not None:
        return IPv6Network(match["v6"] + (match["length"] or "")), _port(match["v6port"])
    if "/" in match["host"]:
        return ipaddress.ip_network(match["host"]), _port(match["port"])
    host = canonical_host(match["host"])
    return host if isinstance(host, str) else ipaddress.ip_network(host), _port(match["port"])


def _port(text: str | None) -> int | None:
    return None if text is None else int(text)
