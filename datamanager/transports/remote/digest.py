"""A file's sha256, computed by a program on the machine: the other end's own view of its storage."""

from __future__ import annotations

import re
from collections.abc import Sequence

from datamanager.errors import NotSupported
from datamanager.transports.channel import Channel
from datamanager.transports.paths import shown
from datamanager.transports.remote.running import Running
from datamanager.transports.values import Progress

SHA256 = re.compile(rb"\b[0-9a-f]{64}\b")


def digest(channel: Channel, program: Sequence[str], path: str, progress: Progress) -> str:
    """Return the hex sha256 of the file by a program that hashes its standard input; see the port's `digest`."""
    with Running(channel, "digest", [path, *program]) as running:
        status = running.wait(progress, f"the machine hashed {shown(path)}")
    found = running.said(SHA256)
    if status != 0 or found is None:
        raise NotSupported(f"the machine could not hash {shown(path)}: {program[0]} ended with status {status}")
    return found[0].decode("ascii")
