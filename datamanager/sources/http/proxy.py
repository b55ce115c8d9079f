"""An http proxy that the client names: a tunnel (CONNECT) to the address that the egress guard has checked.

So the proxy resolves nothing, and TLS is spoken with the source, through it. It must allow CONNECT to that port.
"""

from __future__ import annotations

import base64
import re
import socket
import time
from dataclasses import dataclass, field

from datamanager.sources.network.connections import connect_first
from datamanager.sources.network.egress_guard import EgressGuard
from datamanager.sources.terms.source_options import HttpOptions, option_error, plain_text
from datamanager.sources.terms.urls import Address, Target, parse_target

HEAD_MAX = 16 * 1024
"""Bytes of a proxy's answer."""

_STATUS = re.compile(rb"HTTP/1\.[01] ([0-9]{3})[ \r\n]")


class ProxyRefused(OSError):
    """The proxy does not make the connection."""


@dataclass(frozen=True, slots=True)
class ProxyTunnel:
    """A proxy at checked addresses."""

    addresses: tuple[Address, ...]
    port: int
    authorization: str | None = field(default=None, repr=False)

    def connect(self, address: str, port: int, timeout: float | None) -> socket.socket:
        """Return a connection to `address` and `port`, made by the proxy; `timeout` in seconds for all of it.

        Raises: OSError; ProxyRefused when the proxy says no.
        """
        deadline = time.monotonic() + (60.0 if timeout is None else timeout)
        connection, _ = connect_first(self.addresses, self.port, timeout)
        try:
            host = f"[{address}]" if ":" in address else address
            lines = [f"CONNECT {host}:{port} HTTP/1.1", f"Host: {host}:{port}"]
            if self.authorization is not None:
                lines.append(f"Proxy-Authorization: {self.authorization}")
            connection.sendall("\r\n".join([*lines, "", ""]).encode("ascii"))
            read, match = 0, None
            while match is None or match[1][:1] == b"1":  # interim answers are passed over
                head = b""
                while not head.endswith(b"\r\n\r\n"):
                    if read > HEAD_MAX:
                        raise ProxyRefused("its response does not end")
                    connection.settimeout(max(0.001, deadline - time.monotonic()))
                    more = connection.recv(1)  # not a byte of what comes behind
                    if not more:
                        raise ProxyRefused("it closed the connection")
                    head, read = head + more, read + 1
                match = _STATUS.match(head)
                if match is None:
                    break
            if match is None or match[1][:1] != b"2":
                raise ProxyRefused(f"it answered {match[1].decode() if match else 'no HTTP'}")
            connection.settimeout(timeout)
        except BaseException:
            connection.close()
            raise
        return connection


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy as the options name it."""

    target: Target
    authorization: str | None = field(default=None, repr=False)

    @classmethod
    def of(cls, options: HttpOptions) -> Proxy | None:
        """Return what the options ask for. Raises: InvalidRequest, UrlNotAllowed (credentials in the URL)."""
        if options.proxy is None:
            if options.proxy_username is not None or options.proxy_password is not None:
                raise option_error("proxy_username", "needs proxy")
            return None
        plain = options.proxy.lower().startswith("http://")
        target = parse_target(options.proxy) if plain else None
        if target is None or target.url.removesuffix("/").count("/") > 2:
            raise option_error("proxy", "must be like http://host:port")
        authorization = None
        if options.proxy_username is not None:
            login = f"{options.proxy_username}:{plain_text(options.proxy_password) or ''}".encode()
            authorization = f"Basic {base64.b64encode(login).decode()}"
        return cls(target, authorization)

    def tunnel(self, guard: EgressGuard) -> ProxyTunnel:
        """Return the proxy at its checked addresses. Raises: UrlNotAllowed."""
        addresses = guard.check(self.target.host, self.target.port)
        return ProxyTunnel(tuple(addresses), self.target.port, self.authorization)
