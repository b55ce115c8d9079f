"""Stand before OpenSSH's sftp-server and answer some of its requests otherwise, as other servers do: run by sshd.

Arguments are `request=answer`. A request is `setstat`, `fsetstat`, `rename` or the name of an extension; the answer is
a number (that status), `zeroes` (a reply of zeroes), or `replaces` (a RENAME that replaces).
"""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import threading

_KINDS = {9: "setstat", 10: "fsetstat", 18: "rename"}
_EXTENDED, _STATUS, _REPLY = 200, 101, 201
_PROGRAM = "/usr/lib/openssh/sftp-server"


def main(rules: dict[str, str]) -> None:
    """Pass packets to the server, and its answers back."""
    server = subprocess.Popen([_PROGRAM, "-e"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert server.stdin is not None
    assert server.stdout is not None
    to, out, lock = server.stdin.fileno(), server.stdout.fileno(), threading.Lock()

    def answer(packet: bytes) -> None:
        with lock:
            _send(1, packet)

    def answers() -> None:
        while (packet := _packet(out)) is not None:
            answer(packet)
        os._exit(0)

    threading.Thread(target=answers, daemon=True).start()
    while (packet := _packet(0)) is not None:
        kind, number = packet[0], packet[1:5]
        rule = rules.get(_name(kind, packet))
        if rule is None:
            _send(to, packet)
        elif rule == "replaces":
            name = b"posix-rename@openssh.com"
            _send(to, bytes([_EXTENDED]) + number + struct.pack(">I", len(name)) + name + packet[5:])
        elif rule == "zeroes":
            answer(bytes([_REPLY]) + number + bytes(88))
        else:
            answer(bytes([_STATUS]) + number + struct.pack(">III", int(rule), 0, 0))
    server.stdin.close()
    server.wait()


def _name(kind: int, packet: bytes) -> str:
    if kind != _EXTENDED:
        return _KINDS.get(kind, "")
    length = int.from_bytes(packet[5:9], "big")
    return packet[9 : 9 + length].decode()


def _packet(source: int) -> bytes | None:
    head = _exactly(source, 4)
    return None if head is None else _exactly(source, int.from_bytes(head, "big"))


def _exactly(source: int, count: int) -> bytes | None:
    out = b""
    while len(out) < count:
        piece = os.read(source, count - len(out))
        if not piece:
            return None
        out += piece
    return out


def _send(to: int, packet: bytes) -> None:
    rest = struct.pack(">I", len(packet)) + packet
    while rest:
        rest = rest[os.write(to, rest) :]


if __name__ == "__main__":
    main(dict(rule.split("=", 1) for rule in sys.argv[1:]))
