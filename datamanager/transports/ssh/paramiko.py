"""SFTP channels through paramiko's own transport: nothing else is needed on this host.

One connection per channel: a stall or a loss then concerns one session only, and each has its own TCP window. Channels
of a short transfer share one (`shares`): a login costs both sides 20 ms of CPU.
"""

from __future__ import annotations

import contextlib
import getpass
import io
import socket
import struct
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import paramiko
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from paramiko.buffered_pipe import BufferedPipe
from paramiko.pkey import UnknownKeyType

from datamanager.errors import AuthenticationFailed, MachineUnavailable, RemoteFailure
from datamanager.machines import Machine
from datamanager.signing.signer import PersonLogin
from datamanager.transports.channel import LONG_PATH, NOT_ALLOWED, Channel, RemoteProgram
from datamanager.transports.ssh.hostkeys import KnownHosts, address
from datamanager.transports.ssh.paramiko_program import ParamikoProgram
from datamanager.transports.values import Bytes

_POLL = 0.05
"""Seconds to wait for room to send before looking whether the server waits for us to receive."""
_FAST_CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com")
_WINDOW, _WIDE_WINDOW = 4 * 1024 * 1024, 16 * 1024 * 1024
"""Bytes that the server may send ahead over a short path, where larger ones are slower (measured), and a long one."""
_BLOCK = 64 * 1024
"""Bytes of one block of what was received: a packet of data has half of that."""
_ROUND_TRIP_AT = 68
"""Where Linux's struct tcp_info has the round trip, in microseconds (include/uapi/linux/tcp.h)."""
_DEFAULT_KEYS = ("id_ed25519", "id_ecdsa", "id_rsa")


class ParamikoConnector:
    """Opens channels to one machine, each over its own connection, or several over one (`shares`). Safe to share
    between threads.
    """

    def __init__(self, machine: Machine, login: PersonLogin | None = None, *, shares: bool = False) -> None:
        self.round_trip = 0.0
        self._machine = machine
        self._login = login
        self._shares = shares
        self._channels = Counter[paramiko.Transport]()
        self._lock = threading.Lock()
        self.sftp_only = login is not None and not machine.allow_programs
        """Whether our certificates allow no programs."""
        self.personal = login is not None

    def open_channel(self) -> Channel:
        """Connect, check the host key, log in and start the SFTP server.

        Raises: MachineUnavailable, HostKeyMismatch, AuthenticationFailed.
        """
        if self._shares:
            with self._lock:  # who comes second waits for the first one's login
                transport = next((one for one in self._channels if one.is_active()), None) or self.connect()
                self._channels[transport] += 1
                is_first = self._channels[transport] == 1
            try:
                return ParamikoChannel(self._machine, transport, self)
            except MachineUnavailable:
                if is_first:
                    raise  # else the server allows no further channel, or the connection broke
        return ParamikoChannel(self._machine, self.connect(), self)

    def release(self, transport: paramiko.Transport) -> bool:
        """Close a connection and wait for its thread, unless another channel uses it; say whether it was closed."""
        with self._lock:
            self._channels[transport] -= 1
            if self._channels[transport] > 0:
                return False
            del self._channels[transport]
        transport.close()
        transport.join(self._machine.connect_timeout)
        return True

    def close(self) -> None:
        """Do nothing: connections end with their channels."""

    def connect(self) -> paramiko.Transport:
        """Connect, check the host key and log in. Raises: as `open_channel`."""
        machine = self._machine
        known = KnownHosts(machine)
        transport = connect_transport(machine, address(machine), known.key_algorithms(), round_trip=self.round_trip)
        with _freed_on_failure(machine, transport.close):
            known.check(transport.get_remote_server_key())
            _log_in(transport, machine, self._login)
            transport.set_keepalive(max(1, int(machine.stall_timeout / 3)))
        return transport


class ParamikoChannel(Channel):
    """An SFTP channel of a paramiko transport, which is released when the channel can't be made or is closed."""

    def __init__(self, machine: Machine, transport: paramiko.Transport, connector: ParamikoConnector) -> None:
        super().__init__(machine.stall_timeout)
        self._connect_timeout = machine.connect_timeout
        self._connector = connector
        self._transport = transport
        self._closed = False
        with _freed_on_failure(machine, lambda: connector.release(transport)):
            self._channel = transport.open_session(timeout=machine.connect_timeout)
            self._channel.in_buffer = _ByteQueue()  # before any data can come
            self._channel.invoke_subsystem("sftp")
            self._channel.settimeout(_POLL)
            if isinstance(transport.sock, PromptSocket):
                transport.sock.prompt = False

    def send_some(self, parts: Sequence[Bytes]) -> int:
        """Send what the server's window takes; 0 when there is only something to receive."""
        with self.blocked():
            while True:
                try:
                    sent = self._channel.send(parts[0])  # type: ignore[arg-type]  # a memoryview is as good
                except TimeoutError:
                    if self._channel.recv_ready():
                        return 0
                    continue
                if not sent:
                    raise self.lost("the server closed the connection")
                return sent

    def receive_into(self, buffer: memoryview) -> int:
        """Receive at least one byte; 0 at the end."""
        with self.blocked():
            while True:
                with contextlib.suppress(TimeoutError):
                    data = self._channel.recv(len(buffer))
                    buffer[: len(data)] = data
                    return len(data)

    def alive(self) -> bool:
        """Say whether the connection and the channel are open."""
        return self._transport.is_active() and not self._channel.closed and not self._channel.eof_received

    def run(self, argv: Sequence[str], *, stdin: bool = False, forward_agent: bool = False) -> RemoteProgram:
        """Start a program over the same connection; one that gets our agent over its own."""
        if self._connector.sftp_only or (forward_agent and self._connector.personal):
            raise RemoteFailure(NOT_ALLOWED)
        transport = self._connector.connect() if forward_agent else self._transport
        return ParamikoProgram(
            self,
            transport,
            argv,
            stdin=stdin,
            own_agent=forward_agent,
            connect_timeout=self._connect_timeout,
        )

    @contextlib.contextmanager
    def blocked(self) -> Iterator[None]:
        """Let the watchdog see that a byte is waited for, and say what paramiko raises in our words."""
        try:
            with super().blocked():
                yield
        except (OSError, EOFError, paramiko.SSHException) as exc:
            raise self.lost(f"the connection broke: {exc}") from exc

    def abort(self) -> None:
        """Break the connection."""
        self._transport.close()

    def close(self) -> None:
        """Close the channel: with the connection, when nothing else uses it. Idempotent."""
        if self._closed:
            return
        self._closed = True
        if not self._connector.release(self._transport):
            with contextlib.suppress(OSError, EOFError, paramiko.SSHException):  # it broke
                self._channel.close()


class PromptSocket(socket.socket):
    """A socket that acknowledges what it receives at once, while it is `prompt`: until we are logged in.

    At the end of each login sshd sends two small packets, and its kernel keeps the second one (Nagle's algorithm) until
    the first one is acknowledged, which ours delays by 40 ms while we have nothing to send.
    """

    prompt = True

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        """Receive as a socket does."""
        data = super().recv(bufsize, flags)
        if self.prompt:
            self.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)  # it holds for this packet only
        return data


class _Blocks:
    """Received bytes in blocks. A contiguous buffer needs twice its size while it grows."""

    def __init__(self) -> None:
        self._blocks = deque[bytearray]()
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def append(self, data: bytes) -> None:
        """Append bytes. Short pieces share a block, so that a server that sends single bytes costs no more memory."""
        if self._blocks and len(self._blocks[-1]) + len(data) <= _BLOCK:
            self._blocks[-1] += data
        else:
            self._blocks.append(bytearray(data))
        self._length += len(data)

    def front(self, limit: int) -> bytes:
        """Return the first bytes, at most `limit`."""
        taken = []
        for block in self._blocks:
            if limit <= 0:
                break
            taken.append(block if len(block) <= limit else block[:limit])
            limit -= len(block)
        return b"".join(taken)

    def __delitem__(self, part: slice) -> None:
        """Remove the first bytes, `[:count]`, or all, `[:]`."""
        count = left = self._length if part.stop is None else min(part.stop, self._length)
        while left:
            block = self._blocks[0]
            left -= (step := min(left, len(block)))
            if step == len(block):
                self._blocks.popleft()
            else:
                del block[:step]
        self._length -= count


class _ByteQueue(BufferedPipe):  # type: ignore[type-arg]  # generic in its stub only
    """Paramiko's receive buffer, which gives up its front without moving all that lies behind."""

    def __init__(self) -> None:
        super().__init__()
        self._buffer = _Blocks()

    def _buffer_frombytes(self, data: bytes) -> None:
        self._buffer.append(data)

    def _buffer_tobytes(self, limit: int | None = None) -> bytes:
        return self._buffer.front(len(self._buffer) if limit is None else limit)


@contextlib.contextmanager
def _freed_on_failure(machine: Machine, free: Callable[[], object]) -> Iterator[None]:
    """Call `free` unless all goes well. Raises: MachineUnavailable for what paramiko raises."""
    try:
        yield
    except (paramiko.SSHException, EOFError, OSError) as exc:
        free()
        raise MachineUnavailable(f"{machine.name}: no SSH connection could be made: {exc}") from exc
    except BaseException:
        free()
        raise


def _log_in(transport: paramiko.Transport, machine: Machine, login: PersonLogin | None) -> None:
    """Offer our keys one by one. Raises: AuthenticationFailed."""
    username = machine.username or getpass.getuser()
    tried = 0
    for key in _keys(machine) if login is None else [_certified(login)]:
        tried += 1
        try:
            if not transport.auth_publickey(username, key):
                return
        except paramiko.AuthenticationException:
            if not transport.is_active():
                break
    raise AuthenticationFailed(
        f"{machine.name}: the machine refused our login as {username} ({tried} keys were offered)"
    )


def _certified(login: PersonLogin) -> paramiko.PKey:
    """Return a new key with its certificate, for one connection."""
    private, certificate = login.make()
    text = private.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode("ascii")
    key = paramiko.Ed25519Key.from_private_key(io.StringIO(text))
    key.load_certificate(certificate.line)
    return key


def _keys(machine: Machine) -> Iterator[paramiko.PKey]:
    if machine.identity_file is not None:
        yield _load(machine.identity_file, machine)
        return
    agent = paramiko.Agent()
    try:
        yield from agent.get_keys()
    finally:
        agent.close()
    for name in _DEFAULT_KEYS:
        path = Path("~/.ssh").expanduser() / name
        if path.exists():
            with contextlib.suppress(AuthenticationFailed):  # one among several; another one may do
                yield _load(path, machine)


def _load(path: Path, machine: Machine) -> paramiko.PKey:
    try:
        return paramiko.PKey.from_path(path)
    except (OSError, paramiko.SSHException, UnknownKeyType, ValueError, TypeError) as exc:
        raise AuthenticationFailed(f"{machine.name}: the key {path} can't be used: {exc}") from exc


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
        with socket.create_connection(address, machine.connect_timeout) as connected:
            sock = PromptSocket(fileno=connected.detach())
        sock.settimeout(machine.connect_timeout)
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
    with _freed_on_failure(machine, transport.close):
        exchange_keys(transport, key_algorithms, machine.connect_timeout, only=only)
    return transport


def exchange_keys(
    transport: paramiko.Transport, key_algorithms: Sequence[str], timeout: float, *, only: bool = False
) -> None:
    """Exchange keys within `timeout` seconds; see `connect_transport`. Raises: what paramiko raises."""
    transport.daemon = True
    transport.banner_timeout = transport.handshake_timeout = transport.auth_timeout = timeout
    options = transport.get_security_options()
    options.ciphers = _preferred(_FAST_CIPHERS, options.ciphers)
    options.key_types = key_algorithms if only else _preferred(key_algorithms, options.key_types)
    transport.start_client(timeout=timeout)


def _round_trip(sock: socket.socket) -> float:
    """Return the seconds that TCP's own first packets took."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 128)
    microseconds: int = struct.unpack_from("=I", info, _ROUND_TRIP_AT)[0]
    return microseconds / 1e6


def _preferred(wanted: Sequence[str], offered: Sequence[str]) -> tuple[str, ...]:
    """Return what is offered, with the wanted ones of it in front."""
    front = [one for one in wanted if one in offered]
    return (*front, *(one for one in offered if one not in front))
