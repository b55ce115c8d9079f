"""A small site: a Data Manager, two SSH machines, a local one; and what tests ask of it, over HTTP as clients do."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit
from uuid import uuid4

import requests
from pydantic import SecretStr

from datamanager.client.bearer import BearerAuth
from tests.support.service import DataManagerService
from tests.support.sshd import PrivateSshd
from tests.support.web import Web

PATIENCE = 120.0
"""Seconds until a transfer that has not ended fails the test."""

T = TypeVar("T")
SEED_FIELDS = {"description": "a test file", "originator": "tests", "group": "fire"}


@dataclass
class Site:
    """`folders` maps each machine to the directory that is its base_dir."""

    service: DataManagerService
    folders: dict[str, Path]

    def url(self, path: str) -> str:
        """Return the address of a path of the API."""
        return f"{self.service.url}/DM/{path}"

    def ask(self, method: str, path: str, **options: Any) -> requests.Response:
        """Send a request as a client does that may do everything."""
        auth = None if self.service.token is None else BearerAuth(SecretStr(self.service.token))
        return requests.request(method, self.url(path), timeout=PATIENCE, auth=auth, **options)

    def write(self, machine: str, path: str, data: bytes) -> Path:
        """Put a file on a machine, behind the Data Manager's back."""
        file = self.folders[machine] / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        return file

    def read(self, machine: str, path: str) -> bytes:
        """Read a file of a machine."""
        return (self.folders[machine] / path).read_bytes()

    def exists(self, machine: str, path: str) -> bool:
        """Say whether a file is on a machine."""
        return (self.folders[machine] / path).exists()

    def register(self, machine: str, path: str, data: bytes | None = None, **fields: str) -> str:
        """Register a file (and write it first, when `data` is given); return its identifier."""
        if data is not None:
            self.write(machine, path, data)
        directory, _, name = path.rpartition("/")
        size = (self.folders[machine] / path).stat().st_size
        form = {"filename": name, "path": directory, "machine": machine, "size": str(size), **SEED_FIELDS, **fields}
        answer = self.ask("PUT", "register", data=form)
        assert answer.status_code == 201, answer.text
        return answer.text

    def info(self, uuid: str) -> dict[str, Any]:
        """Return an object's row."""
        answer = self.ask("GET", f"info/{uuid}")
        assert answer.status_code == 200, answer.text
        row: dict[str, Any] = answer.json()
        return row

    def status(self, task: str) -> dict[str, Any]:
        """Return a task's status."""
        answer = self.ask("GET", f"async/status/{task}")
        assert answer.status_code == 200, answer.text
        status: dict[str, Any] = answer.json()
        return status

    def wait(self, task: str, patience: float = PATIENCE) -> dict[str, Any]:
        """Poll a task until it has ended."""
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            status = self.status(task)
            if status["status"] in ("COMPLETE", "ERROR"):
                return status
            assert status["status"] in ("QUEUED", "RUNNING")
            time.sleep(0.05)
        raise AssertionError(f"task {task} did not end: {status}")

    def leftovers(self) -> list[Path]:
        """Return the partial files that lie about."""
        return [file for folder in self.folders.values() for file in folder.rglob("*.dmpart")]


def make_site(
    home: Path,
    env: Mapping[str, str],
    sshd_pair: tuple[PrivateSshd, PrivateSshd],
    *,
    movers: int = 1,
    archives: Mapping[str, Mapping[str, object]] | None = None,
    **keys: object,
) -> Site:
    """Prepare a site below `home`; its service is not started yet.

    Its machines are localhost, archer2 and cirrus; `archives` are further ones of cirrus' host with keys of their own.
    """
    archives = archives or {}
    folders = {name: home / "data" / name for name in ("localhost", "archer2", "cirrus", *archives)}
    for folder in folders.values():
        folder.mkdir(parents=True)
    machines = home / "machines.toml"
    servers = {"archer2": sshd_pair[0], **dict.fromkeys(["cirrus", *archives], sshd_pair[1])}
    write_machines(
        machines, folders, servers, {name: {"archive": True, **own} for name, own in archives.items()}, **keys
    )
    return Site(DataManagerService(home / "dm", {"DM_MACHINES": str(machines), **env}, movers=movers), folders)


def allowed(web: Web) -> str:
    """Return the DM_DOWNLOAD_ALLOW entries that open the tests' web server, its two ports and no other."""
    return ",".join({urlsplit(url).netloc for url in (web.url, web.tls_url)})


def write_machines(
    file: Path,
    folders: Mapping[str, Path],
    servers: Mapping[str, PrivateSshd],
    own: Mapping[str, Mapping[str, object]] | None = None,
    **keys: object,
) -> None:
    """Write a machines.toml with `localhost` and the SSH machines.

    `keys` go into each SSH machine's table, `own` into that of the machine that is named.
    """
    tables = [f'[machines.localhost]\ntransport = "local"\nbase_dir = {json.dumps(str(folders["localhost"]))}\n']
    for name, server in servers.items():
        machine = server.machine(name, str(folders[name]))
        values: dict[str, object] = {
            "transport": "sftp",
            "host": machine.host,
            "port": machine.port,
            "username": machine.username,
            "identity_file": str(machine.identity_file),
            "known_hosts": str(machine.known_hosts),
            "base_dir": machine.base_dir,
            **keys,
            **(own or {}).get(name, {}),
        }
        lines = [f"{key} = {json.dumps(value)}" for key, value in values.items() if value is not None]
        tables.append(f"[machines.{name}]\n" + "\n".join(lines) + "\n")
    file.write_text("\n".join(tables))


def eventually(look: Callable[[], T | None], what: str, patience: float = PATIENCE) -> T:
    """Look until there is something (that is true); return it. Raises: AssertionError after `patience` seconds."""
    deadline = time.monotonic() + patience
    while not (seen := look()):
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.05)
    return seen


def some_bytes(size: int) -> bytes:
    """Return bytes that no other call returns, quickly."""
    seed = uuid4().bytes
    block = hashlib.sha512(seed).digest() * 1024
    return (block * (size // len(block) + 1))[: max(0, size - 16)] + seed[: min(16, size)]


def sha256(data: bytes) -> str:
    """Return a checksum as the catalogue writes it."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
