"""Accounts of people, an authority that signs their certificates, and servers that trust it."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from datamanager.signing.builtin_ca import BuiltinCa, create_key, sshd_lines
from tests.support.sshd import PrivateSshd


@contextmanager
def accounts(count: int) -> Iterator[list[str]]:
    """Make accounts on this host."""
    names = [f"dm{secrets.token_hex(4)}" for _ in range(count)]
    try:
        for name in names:  # "*": no password, but not locked, as sshd without PAM wants it
            subprocess.run(["useradd", "-M", "-d", "/", "-p", "*", "-s", "/bin/sh", name], check=True)
        yield names
    finally:
        for name in names:
            subprocess.run(["userdel", "-f", name], check=False, capture_output=True)


@contextmanager
def open_folder() -> Iterator[Path]:
    """Make a folder that other accounts can reach, as those of pytest can't be."""
    place = Path(tempfile.mkdtemp(dir="/tmp", prefix="dmca"))
    place.chmod(0o755)
    try:
        yield place
    finally:
        shutil.rmtree(place)


def authority(place: Path) -> BuiltinCa:
    """Make an authority; its public half is `ca.pub` in the folder, its revocation list `krl`."""
    create_key(place / "ca")
    ca = BuiltinCa(place / "ca")
    (place / "ca.pub").write_text(ca.public_line + "\n")
    return ca


@contextmanager
def trusting(place: Path, count: int, **options: object) -> Iterator[list[PrivateSshd]]:
    """Start servers that trust the authority of the folder."""
    lines = sshd_lines(os.fspath(place / "ca.pub")).splitlines()
    with ExitStack() as stack:
        yield [
            stack.enter_context(PrivateSshd(place / f"sshd{number}", extra=lines, **options))  # type: ignore[arg-type]
            for number in range(count)
        ]
