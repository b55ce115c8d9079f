"""One machine sends a file straight to another one: the program that does it, on the source, with the ssh there.

It ends with its standard input, which we hold open: a cancel, a mover that dies and a connection that breaks all end
it, and with its ssh the program at the destination. That one writes at positions of its own, never "at the end", so
that even a pair of which nobody knows any more writes nothing but the right bytes at their right places.
(docs/adr/0007-direct-transfers.md)
"""

from __future__ import annotations

import logging
import math
import shlex
import time

from datamanager.errors import ConnectionLost, RemoteFailure, TransportError
from datamanager.machines import Machine
from datamanager.transports.channel import Channel, RemoteProgram
from datamanager.transports.paths import shown
from datamanager.transports.ssh.hostkeys import KnownHosts, address
from datamanager.transports.values import Progress, PushTarget

_log = logging.getLogger(__name__)

# $1 the file, $2 the offset, $3 the destination's known_hosts lines, then ssh's words. The second one in the background
# waits for the end of our input. On one line, and with a blank after `!`, so that a csh as login shell passes it on.
_SEND = (
    "exec 3<&0 2>&1; umask 077; f=$1; o=$2; h=$3; shift 3; p=; w=; k=$(mktemp) || exit 1; "
    """trap 'kill $p $w 2>/dev/null; rm -f "$k"' EXIT; printf %s "$h" > "$k" || exit 1; """
    r'set -- -o "UserKnownHostsFile=\"$k\"" "$@"; '
    'if [ "$o" = 0 ]; then ssh "$@" < "$f" & else tail -c "+$((o + 1))" < "$f" | ssh "$@" & fi; p=$! ; '
    "{ read -r x; kill $p; } <&3 >/dev/null 2>&1 & w=$! ; "
    "wait $p; s=$?; p=; exec 2>/dev/null; [ $s = 0 ]"
)
# $1 the partial file, $2 the offset
_CREATE = 'umask 077; set -C; exec cat > "$1"'
_GO_ON = (
    '[ -f "$1" ] || exit 1; [ -h "$1" ] && exit 1; exec 1<> "$1" || exit 1; '
    'dd bs=1 count=0 seek="$2" </dev/null 2>/dev/null && exec cat'
)
# what every OpenSSH since 6.5 knows, the fastest first (`^` to put one in front came with 8.0)
_CIPHERS = "aes128-gcm@openssh.com,aes256-gcm@openssh.com,chacha20-poly1305@openssh.com,aes128-ctr,aes256-ctr"
_SETTINGS = {
    "BatchMode": "yes",
    "StrictHostKeyChecking": "yes",
    "GlobalKnownHostsFile": "/dev/null",
    "CheckHostIP": "no",
    "VerifyHostKeyDNS": "no",
    "NoHostAuthenticationForLocalhost": "no",
    "UpdateHostKeys": "no",
    "ControlMaster": "no",
    "ControlPath": "none",  # a connection that is there already was not checked by us
    "ClearAllForwardings": "yes",
    "ForwardAgent": "no",
    "ForwardX11": "no",
    "PermitLocalCommand": "no",
    "Compression": "no",
    "ServerAliveCountMax": "3",
    "LogLevel": "ERROR",
}
_POLL = 0.3
"""Seconds between two calls of `progress` while the program works."""
_ENDING = 10.0
"""Seconds that the program may take to end when it is told to."""
_MOST_OUTPUT = 8192
_MOST_WORDS = 300


def push_target(machine: Machine, path: str, offset: int = 0, *, forward_agent: bool = False) -> PushTarget | None:
    """Return the target on a machine, None when we don't know its host key ourselves.

    Raises: MachineUnavailable when ssh can't read its configuration.
    """
    known = KnownHosts.of(machine)
    host, port = address(machine)
    lines = known.lines()
    if lines is None:
        return None
    return PushTarget(
        host=machine.direct_host or host,
        port=port,
        username=machine.username,
        host_key_alias=known.alias,
        known_hosts=lines,
        connect_timeout=machine.connect_timeout,
        stall_timeout=machine.stall_timeout,
        path=path,
        offset=offset,
        forward_agent=forward_agent,
    )


def push(channel: Channel, path: str, to: PushTarget, progress: Progress) -> bool:
    """Let the channel's machine send a file; see the port's `push`."""
    argv = ["sh", "-c", _SEND, "sh", path, str(to.offset), to.known_hosts, *_ssh_words(to)]
    try:
        program = channel.run(argv, stdin=True, forward_agent=to.forward_agent)
    except RemoteFailure as exc:
        _log.info("%s can't be pushed: %s", shown(path), exc.detail)
        return False
    output = b""
    with program as remote:
        try:
            while (piece := remote.read(_POLL)) != b"":
                output = (output + (piece or b""))[-_MOST_OUTPUT:]
                progress(0)
        except BaseException:
            _end(remote, path)
            raise
        status = remote.exit_status()
    if status is None:
        raise ConnectionLost(f"{shown(path)}: the connection broke while the machine pushed the file")
    if status != 0:
        _log.info("%s was not pushed to %s: %s", shown(path), to.host, _last_words(output))
    return status == 0


def _ssh_words(to: PushTarget) -> list[str]:
    """Return what follows `ssh` on the source's command line, known_hosts file apart."""
    settings = _SETTINGS | {
        "HostKeyAlias": to.host_key_alias,
        "ConnectTimeout": str(math.ceil(to.connect_timeout)),
        "ServerAliveInterval": str(max(1, math.ceil(to.stall_timeout / 3))),
    }
    options = [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]
    login = [] if to.username is None else ["-l", to.username]
    script = _GO_ON if to.offset else _CREATE
    remote = shlex.join(["sh", "-c", script, "sh", to.path, str(to.offset)])
    return ["-T", "-c", _CIPHERS, *options, *login, "-p", str(to.port), "--", to.host, remote]


def _end(remote: RemoteProgram, path: str) -> None:
    """Close the program's input and see it end. The error that leads here matters more than this one's."""
    deadline = time.monotonic() + _ENDING
    try:
        remote.close_input()
        while (left := deadline - time.monotonic()) > 0:
            if remote.read(left) == b"":
                return
    except TransportError as exc:
        _log.info("%s: the program that pushed it went away: %s", shown(path), exc.detail)
        return
    _log.warning("%s: the program that pushed it did not end within %g seconds", shown(path), _ENDING)


def _last_words(output: bytes) -> str:
    lines = output.decode("utf-8", "replace").strip().splitlines()
    return shown(lines[-1].strip()[-_MOST_WORDS:]) if lines else "it said nothing"
