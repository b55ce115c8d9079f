"""An http proxy that the client names: asked, by CONNECT, for the address that the guard has checked.

So the proxy resolves nothing, and what holds without it holds with it as far as it does what it is asked to do; TLS is
spoken with the source, through it. It needs to allow CONNECT to the source's port.
"""

from __future__ import annotations

import base64
import re
import socket
import time
from dataclasses import dataclass, field

from datamanager.errors import InvalidRequest
from datamanager.sources.network.egress_guard import Address, EgressGuard
from datamanager.sources.terms.options import HttpOptions
from datamanager.sources.terms.urls import Target, parse_target

HEAD_MAX = 16 * 1024
"""Bytes of a proxy's answer."""

_STATUS = re.compile(rb"HTTP/1\.[01] ([0-9]{3})[ \r\n]")


class ProxyRefused(OSError):
    """The proxy does not make the connection."""


@dataclass(frozen=True, slots=True)
class Way:
    """A proxy at an address that was checked."""

    addresses: tuple[Address, ...]
    port: int
    authorization: str | None = field(default=None, repr=False)

    def connect(self, address: str, port: int, timeout: float | None) -> socket.socket:
        """Return a connection to `address` and `port`, made by the proxy; `timeout` in seconds for all of it.

        Raises: OSError; ProxyRefused when the proxy says no.
        """
        deadline = time.monotonic() + (60.0 if timeout is None else timeout)
        connection = self._reach(timeout)
        try:
            host = f"[{address}]" if ":" in address else address
            lines = [f"CONNECT {host}:{port} HTTP/1.1", f"Host: {host}:{port}"]
            if self.authorization is not None:
                lines.append(f"Proxy-Authorization: {self.authorization}")
            connection.sendall("\r\n".join([*lines, "", ""]).encode("ascii"))
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                if len(head) > HEAD_MAX:
                    raise ProxyRefused("its answer has no end")
                connection.settimeout(max(0.001, deadline - time.monotonic()))
                more = connection.recv(1)  # not a byte of what comes behind
                if not more:
                    raise ProxyRefused("it closed the connection")
                head += more
            match = _STATUS.match(head)
            if match is None or match[1][:1] != b"2":
                raise ProxyRefused(f"it answered {match[1].decode() if match else 'no HTTP'}")
            connection.settimeout(timeout)
        except BaseException:
            connection.close()
            raise
        return connection

    def _reach(self, timeout: float | None) -> socket.socket:
        for address in self.addresses[:-1]:
            try:
                return socket.create_connection((str(address), self.port), timeout)
            except OSError:
                continue
        return socket.create_connection((str(self.addresses[-1]), self.port), timeout)


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
                raise InvalidRequest("options.proxy_username: needs proxy", {"options.proxy_username": "needs proxy"})
            return None
        why = "must be like http://host:port"
        if not options.proxy.lower().startswith("http://"):
            raise InvalidRequest(f"options.proxy: {why}", {"options.proxy": why})
        target = parse_target(options.proxy)
        if target.url.removesuffix("/").count("/") > 2:
            raise InvalidRequest(f"options.proxy: {why}", {"options.proxy": why})
        authorization = None
        if options.proxy_username is not None:
            password = "" if options.proxy_password is None else options.proxy_password.get_secret_value()
            pair = f"{options.proxy_username}:{password}".encode()
            authorization = f"Basic {base64.b64encode(pair).decode()}"
        return cls(target, authorization)

    def check(self, guard: EgressGuard) -> None:
        """Refuse a proxy where downloads may not go. Raises: UrlNotAllowed."""
        guard.check(self.target.host, self.target.port)

    def way(self, guard: EgressGuard) -> Way:
        """Return the proxy at its checked addresses. Raises: UrlNotAllowed."""
        addresses = guard.check(self.target.host, self.target.port)
        return Way(tuple(addresses[:4]), self.target.port, self.authorization)
