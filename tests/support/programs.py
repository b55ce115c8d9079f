"""Where the servers' programs are, and what happens when one is missing."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

import pytest

SYSTEM_PATH = "/usr/local/sbin:/usr/sbin:/sbin"
"""Folders of servers that are not on an ordinary user's PATH."""


def missing(what: str) -> NoReturn:
    """Skip the test that needs `what`; in CI nothing is skipped, there it fails."""
    if os.getenv("CI"):
        raise RuntimeError(what)
    pytest.skip(what)


def find_program(name: str, *, also: Iterable[Path] = ()) -> str:
    """Return the path of a program; `also` are further folders, looked into first."""
    folders = [*map(str, also), os.environ.get("PATH", os.defpath), SYSTEM_PATH]
    found = shutil.which(name, path=os.pathsep.join(folders))
    if found is None:
        missing(f"{name} is not installed")
    return found


def listens(port: int, host: str = "127.0.0.1") -> bool:
    """Say whether something accepts connections on a TCP port."""
    try:
        with socket.create_connection((host, port), 1):
            return True
    except OSError:
        return False
