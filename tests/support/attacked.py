"""A service that is attacked: an API that knows who asks, something that is not the attacker's, and a witness that
nothing of it has changed.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pytest
import requests
from sqlalchemy import select

from models.tables import Base, TokenRecord, TrailEntry, TrailMark
from tests.support.catalogue import empty_catalogue
from tests.support.live_api import LiveApi

TOLD = {TrailEntry.__table__, TrailMark.__table__}
"""What attacks are allowed to change: the audit trail tells of them."""
THEIRS = b"the bytes of somebody else"


@dataclass(frozen=True)
class Attacked:
    """`theirs` is an object of the group water, at `here:theirs/secret.bin`; the attacker is a mover of the group
    fire, and has a token.
    """

    api: LiveApi
    admin: str
    attacker: str
    theirs: str

    @classmethod
    def of(cls, api: LiveApi) -> Self:
        """Prepare an API with authentication, whose catalogue is empty."""
        admin = api.tokens.make("admin")
        fields = {"machine": "here", "path": "theirs", "filename": "secret.bin", "group": "water"}
        api.write("theirs/secret.bin", THEIRS)
        answer = api.ask("PUT", "/DM/register", data=fields, token=admin)
        assert answer.status_code == 201, answer.text
        return cls(api, admin, api.tokens.make("mover", groups=["fire"]), answer.text)

    def ask(self, method: str, path: str, **options: Any) -> requests.Response:
        """Send a request as the attacker, unless `token` says otherwise; it does not wait."""
        headers = {"Accept": "application/json", "Prefer": "respond-async", **options.pop("headers", {})}
        given = {"token": self.attacker, "allow_redirects": False, **options}
        return self.api.ask(method, path, headers=headers, **given)

    def send(self, sent: bytes) -> bytes:
        """Send bytes as they are over a connection of their own; return all that is answered until the service closes
        it, because it is told to or can't read on.
        """
        with socket.create_connection(("127.0.0.1", self.api.settings.port), timeout=30) as client:
            client.sendall(sent)
            received = bytearray()
            try:
                while some := client.recv(2**16):
                    received += some
            except ConnectionResetError:
                pass
        return bytes(received)

    def everything(self) -> dict[str, object]:
        """Return all rows but those that tell of attacks, and all files of the machines."""
        found: dict[str, object] = {}
        with self.api.database.read() as session:
            for table in Base.metadata.sorted_tables:
                if table not in TOLD:
                    columns = [one for one in table.columns if one is not TokenRecord.__table__.c.last_used]
                    found[table.name] = sorted(map(repr, session.execute(select(*columns))))
        folder = self.api.folders["here"].parent
        found["files"] = {str(path): _content(path) for path in sorted(folder.rglob("*")) if path.parts[-1] != "home"}
        return found

    @contextmanager
    def untouched(self, *names: str) -> Iterator[None]:
        """Assert that no row and no byte changes in here; with `names` those of these tables, and "files"."""
        before = self.everything()
        yield
        after = self.everything()
        for name in names or before:
            assert after[name] == before[name], name


@contextmanager
def attacked(request: pytest.FixtureRequest, folder: Path, **settings: Any) -> Iterator[Attacked]:
    """Serve an API that is to be attacked."""
    given = {"auth": "required", "download_allow": ("127.0.0.1",), **settings}
    with empty_catalogue(request, "sqlite", folder) as url, LiveApi(folder / "site", url, **given) as api:
        yield Attacked.of(api)


def _content(path: Path) -> object:
    if path.is_symlink():
        return path.readlink()
    return path.read_bytes() if path.is_file() else None
