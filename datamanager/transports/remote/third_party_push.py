"""One machine sends a file straight to another one: the program that does it, on the source, with the ssh there.

It ends with its standard input, which the mover keeps open: a cancellation, the mover's death and a broken connection
all end it, and with its ssh the program at the destination. That one writes at positions of its own, never "at the
end", so that even an orphaned pair writes nothing but the right bytes at their right places.
(docs/adr/0007-direct-transfers.md; with a certificate docs/adr/0036-direct-transfers-by-certificate.md)
"""

from __future__ import annotations

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from datamanager.errors import ConnectionLost, NotSupported, RemoteFailure, SigningFailed, SigningUnavailable
from datamanager.machines import Machine
from datamanager.signing.signer import PersonLogin
from datamanager.transports.channel import Channel
from datamanager.transports.login_shell import command_line
from datamanager.transports.remote.running import end_by_input, shell_words
from datamanager.transports.ssh.hostkeys import KnownHosts, address
from datamanager.transports.ssh.openssh_client import certificate_settings, option_words
from datamanager.transports.values import Progress, PushTarget, shown

# what every OpenSSH since 6.5 knows, the fastest first (`^` to put one in front came with 8.0)
_CIPHERS = "aes128-gcm@openssh.com,aes256-gcm@openssh.com,chacha20-poly1305@openssh.com,aes128-ctr,aes256-ctr"
_SETTINGS = {
    "GlobalKnownHostsFile": "/dev/null",
    "CheckHostIP": "no",
    "VerifyHostKeyDNS": "no",
    "ControlMaster": "no",
    "ControlPath": "none",  # a connection that is there already was not checked by us
    "Compression": "no",
}
_POLL = 0.3
"""Seconds between two calls of `progress` while the program works."""
_ENDING = 10.0
"""Seconds that the program may take to end once its input is closed."""
_MOST_OUTPUT = 8192
_MOST_WORDS = 300


def push_target(
    machine: Machine,
    path: str,
    offset: int = 0,
    *,
    source: Machine,
    login: PersonLogin | None = None,
) -> PushTarget:
    """Return the target on a machine. `login`: as whom the machine is used; the source then gets a certificate that can
    write this partial file and do nothing else.

    Raises: NotSupported when we don't know its host key ourselves, or there is no certificate; MachineUnavailable when
    ssh can't read its configuration, or the source's address can't be told.
    """
    known = KnownHosts(machine)
    host, port = address(machine)
    lines = known.lines()
    if lines is None:
        raise NotSupported(f"the host key of {machine.name} is not in our known_hosts")
    username, certificate, private = machine.username, None, b""
    if login is not None:
        try:
            key, made = login.make_for(source, command_line(_receive(path, offset)))
        except (SigningFailed, SigningUnavailable) as exc:
            raise NotSupported(f"no certificate for {machine.name}: {exc.detail}") from exc
        private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
        username, certificate = login.account, made.line
    return PushTarget(
        host=machine.direct_host or host,
        port=port,
        username=username,
        host_key_alias=known.alias,
        known_hosts=lines,
        connect_timeout=machine.connect_timeout,
        stall_timeout=machine.stall_timeout,
        path=path,
        offset=offset,
        forward_agent=source.forward_agent and certificate is None,
        certificate=certificate,
        key=private,
    )


def push(channel: Channel, path: str, to: PushTarget, progress: Progress) -> None:
    """Let the channel's machine send a file; see the port's `push`."""
    login = [to.certificate or "", str(len(to.key))]
    words = shell_words("push", [path, str(to.offset), to.known_hosts, *login, *_ssh_words(to)])
    if to.certificate is not None:
        words = ["ssh-agent", *words]
    try:
        program = channel.run(words, stdin=True, forward_agent=to.forward_agent)
    except RemoteFailure as exc:
        raise NotSupported(f"the machine runs no program for us: {exc.detail}") from exc
    output = b""
    with program as remote:
        try:
            if to.key:
                remote.write(to.key)
            while (piece := remote.read(_POLL)) != b"":
                output = (output + (piece or b""))[-_MOST_OUTPUT:]
                progress(0)
        except BaseException:
            end_by_input(remote, _ENDING, f"the program that pushed {shown(path)}")
            raise
        status = remote.exit_status()
    if status is None:
        raise ConnectionLost(f"{shown(path)}: the connection broke while the machine pushed the file")
    if status != 0:
        raise NotSupported(f"ssh to {to.host} ended with status {status}: {_last_words(output)}")


def _ssh_words(to: PushTarget) -> list[str]:
    """Return what follows `ssh` on the source's command line, known_hosts file apart."""
    settings = _SETTINGS | {"HostKeyAlias": to.host_key_alias}
    if to.certificate is not None:
        settings |= certificate_settings("SSH_AUTH_SOCK")
    options = option_words(settings, to.connect_timeout, to.stall_timeout)
    login = [] if to.username is None else ["-l", to.username]
    remote = command_line(_receive(to.path, to.offset))
    return ["-c", _CIPHERS, *options, *login, "-p", str(to.port), "--", to.host, remote]


def _receive(path: str, offset: int) -> list[str]:
    """Return the words of the program at the destination."""
    return shell_words("receive_rest" if offset else "receive_new", [path, str(offset)])


def _last_words(output: bytes) -> str:
    lines = output.decode("utf-8", "replace").strip().splitlines()
    return shown(lines[-1].strip()[-_MOST_WORDS:]) if lines else "it said nothing"
