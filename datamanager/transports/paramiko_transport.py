"""A paramiko transport as we want it: one TCP connection, keys exchanged, nobody logged in yet."""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence

import paramiko

from datamanager.errors import MachineUnavailable
from datamanager.machines import Machine
from datamanager.transports.channel import LONG_PATH

_FAST_CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com")
_WINDOW, _WIDE_WINDOW = 4 * 1024 * 1024, 16 * 1024 * 1024
"""Bytes that the server may send ahead over a short path, where larger ones are slower (measured), and a long one."""
_ROUND_TRIP_AT = 68
"""Where Linux's struct tcp_info has the round trip, in microseconds (include/uapi/linux/tcp.h)."""


def connect_transport(
    machine: Machine,
    address: tuple[str, int],
    key_algorithms: Sequence[str] = (),
    *,
    only: bool = False,
    round_trip: float = 0.0,
) -> paramiko.Transport:
    """Connect and exchange keys; the caller checks the host key, logs in, and closes the transport.

    `key_algorithms` are the host key algorithms to offer first (those of known keys, so that the server shows one that
    we know); with `only`, the others are not offered at all. The receive window is sized for the path's round trip:
    what TCP saw of it, or `round_trip` (seconds) where that is more.

    Raises: MachineUnavailable, also when the two sides have no algorithm in common.
    """
    try:
        sock = socket.create_connection(address, machine.connect_timeout)
    except OSError as exc:
        raise MachineUnavailable(f"{machine.name}: can't be reached: {exc}") from exc
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # the kernel ends a connection whose peer is gone even while we only wait for its words
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(machine.stall_timeout * 2000))
        long = max(round_trip, _round_trip(sock)) >= LONG_PATH
        transport = paramiko.Transport(sock, default_window_size=_WIDE_WINDOW if long else _WINDOW)
    except BaseException:
        sock.close()
        raise
    try:
        transport.daemon = True
        transport.banner_timeout = transport.handshake_timeout = transport.auth_timeout = machine.connect_timeout
        options = transport.get_security_options()
        options.ciphers = _first(_FAST_CIPHERS, options.ciphers)
        options.key_types = key_algorithms if only else _first(key_algorithms, options.key_types)
        transport.start_client(timeout=machine.connect_timeout)
    except (paramiko.SSHException, EOFError, OSError) as exc:
        transport.close()
        raise MachineUnavailable(f"{machine.name}: no SSH connection could be made: {exc}") from exc
    except BaseException:
        transport.close()
        raise
    return transport


def _round_trip(sock: socket.socket) -> float:
    """Return the seconds that TCP's own first packets took."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 128)
    microseconds: int = struct.unpack_from("=I", info, _ROUND_TRIP_AT)[0]
    return microseconds / 1e6


def _first(wanted: Sequence[str], offered: Sequence[str]) -> tuple[str, ...]:
    """Return what is offered, with the wanted ones of it in front."""
    front = [one for one in wanted if one in offered]
    return (*front, *(one for one in offered if one not in front))
