"""One valid request for each endpoint of the API, about things of a group and on a machine. The tests of scopes go
through all endpoints of the OpenAPI document by this table; one that is not in it fails them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from itertools import count
from typing import Any
from uuid import uuid4

from tests.support.live_api import LiveApi

_numbers = count()


class Aim(StrEnum):
    """What a request is about, and so how it is answered where that is foreign."""

    NAMED = "named"
    """A thing, by its identifier in the address: 404."""
    PLACED = "placed"
    """A group, a place or a machine that the request names: 403."""
    LISTED = "listed"
    """A list: what is foreign is not in it."""
    BATCHED = "batched"
    """The items of a batch: each that is foreign fails alone, as one that is not there."""
    WHOLE = "whole"
    """The site: a scope with filters is not enough."""
    ANY = "any"
    """Nothing of a group."""


@dataclass(frozen=True)
class World:
    """Where requests find things: those of `group` on `machine`, made when they are asked for, as `person` (a token).
    With `exists` false there are none, and identifiers are of nothing.
    """

    api: LiveApi
    person: str
    group: str
    machine: str
    exists: bool = True

    def object(self) -> str:
        """Return an object's identifier."""
        if not self.exists:
            return str(uuid4())
        name = f"{next(_numbers)}.bin"
        self.api.write(f"objects/{name}", machine=self.machine)
        fields = {"machine": self.machine, "path": "objects", "filename": name, "group": self.group}
        return self._made("PUT", "/DM/register", "uuid", fields)

    def task(self) -> str:
        """Return a task's identifier."""
        if not self.exists:
            return str(uuid4())
        return self._made("POST", f"/DM/async/copy/{self.object()}", "task", self.destination())

    def schedule(self) -> str:
        """Return a schedule's identifier."""
        return self._made("POST", "/DM/schedules", "id", self.download(schedule=True)) if self.exists else str(uuid4())

    def audit(self) -> str:
        """Return an audit's identifier."""
        return self._made("POST", "/DM/audits", "audit", {"machine": self.machine}) if self.exists else str(uuid4())

    def run(self) -> str:
        """Return the identifier of a run of retention."""
        return self._made("POST", "/DM/retention/run", "run", {"dry_run": True}) if self.exists else str(uuid4())

    def token(self) -> str:
        """Return a token's identifier."""
        if not self.exists:
            return uuid4().hex[:12]
        return self._made("POST", "/DM/tokens", "id", {"name": uuid4().hex, "groups": [self.group]})

    def destination(self) -> dict[str, Any]:
        """Return the fields of a copy."""
        return {"machine": self.machine, "dest": f"copies/{next(_numbers)}"}

    def file(self) -> dict[str, Any]:
        """Return the fields that register a file."""
        name = f"{next(_numbers)}.bin"
        self.api.write(f"files/{name}", machine=self.machine)
        return {"machine": self.machine, "path": "files", "filename": name, "group": self.group}

    def tree(self) -> dict[str, Any]:
        """Return the fields that register a directory."""
        return {name: value for name, value in self.file().items() if name != "filename"}

    def download(self, *, schedule: bool = False) -> dict[str, Any]:
        """Return the fields of a download."""
        name = f"{next(_numbers)}" + ("-{date:%Y%m%d%H}" if schedule else "")
        fields = {"machine": self.machine, "path": "fetched", "filename": name, "group": self.group}
        return {**fields, "url": "http://127.0.0.1:9/x", **({"interval": "6h"} if schedule else {})}

    def _made(self, method: str, path: str, key: str, fields: dict[str, Any]) -> str:
        answer = self.api.ask(method, path, json=fields, token=self.person, headers={"Accept": "application/json"})
        assert answer.status_code in (200, 201, 202), (method, path, answer.text)
        return str(answer.json()[key])


Asking = Callable[[World], tuple[str, dict[str, Any] | None]]
"""Returns the address of a request and its fields."""
Endpoint = tuple[Aim, Asking]

_ONE_OBJECT: Endpoint = (Aim.NAMED, lambda w: (w.object(), {}))
_MOVED: Endpoint = (Aim.NAMED, lambda w: (w.object(), w.destination()))
_TASK: Endpoint = (Aim.NAMED, lambda w: (w.task(), {}))
_ITEMS: Endpoint = (Aim.BATCHED, lambda w: ("", {"items": [{"uuid": w.object()}]}))
_MOVED_ITEMS: Endpoint = (Aim.BATCHED, lambda w: ("", {"items": [{"uuid": w.object(), **w.destination()}]}))
_DOWNLOAD: Endpoint = (Aim.PLACED, lambda w: ("", w.download()))
_MACHINE: Endpoint = (Aim.PLACED, lambda w: (w.machine, {}))
_SCHEDULE: Endpoint = (Aim.NAMED, lambda w: (w.schedule(), {}))
_TOKEN: Endpoint = (Aim.NAMED, lambda w: (w.token(), {}))

ENDPOINTS: dict[str, Endpoint] = {
    "GET /DM/whoami": (Aim.ANY, lambda _: ("", None)),
    "GET /DM/info": (Aim.LISTED, lambda w: (w.object(), None)),
    "GET /DM/info/{uuid}": (Aim.NAMED, lambda w: (w.object(), None)),
    "PUT /DM/register": (Aim.PLACED, lambda w: ("", w.file())),
    "POST /DM/register/tree": (Aim.PLACED, lambda w: ("", w.tree())),
    "POST /DM/copy/{uuid}": _MOVED,
    "POST /DM/move/{uuid}": _MOVED,
    "DELETE /DM/delete/{uuid}": _ONE_OBJECT,
    "PUT /DM/getexternal": _DOWNLOAD,
    "POST /DM/async/getexternal": _DOWNLOAD,
    "PUT /DM/async/getexternal": _DOWNLOAD,
    **{
        f"{method} /DM/{way}{verb}/{{uuid}}": _ONE_OBJECT
        for method in ("POST", "PUT")
        for way in ("", "async/")
        for verb in ("archive", "activate")
    },
    "POST /DM/async/copy/{uuid}": _MOVED,
    "POST /DM/async/move/{uuid}": _MOVED,
    "POST /DM/async/copy": _MOVED_ITEMS,
    "POST /DM/async/move": _MOVED_ITEMS,
    "POST /DM/async/archive": _ITEMS,
    "POST /DM/async/activate": _ITEMS,
    "GET /DM/async/status": (Aim.LISTED, lambda w: (w.task(), None)),
    "GET /DM/async/status/{task}": (Aim.NAMED, lambda w: (w.task(), None)),
    "GET /DM/async/status/{task}/items": (Aim.NAMED, lambda w: (w.task(), None)),
    "DELETE /DM/async/status/{task}": _TASK,
    "PATCH /DM/async/status/{task}": (Aim.NAMED, lambda w: (w.task(), {"bandwidth": 1000})),
    "POST /DM/async/{task}/pause": _TASK,
    "POST /DM/async/{task}/resume": _TASK,
    "GET /DM/machines": (Aim.LISTED, lambda w: (w.machine, None)),
    "PATCH /DM/machines/{name}": (Aim.PLACED, lambda w: (w.machine, {"max_transfers": 3})),
    "DELETE /DM/machines/{name}/limits": _MACHINE,
    "POST /DM/machines/{name}/drain": _MACHINE,
    "POST /DM/machines/{name}/undrain": _MACHINE,
    "POST /DM/schedules": (Aim.PLACED, lambda w: ("", w.download(schedule=True))),
    "GET /DM/schedules": (Aim.LISTED, lambda w: (w.schedule(), None)),
    "GET /DM/schedules/{schedule}": (Aim.NAMED, lambda w: (w.schedule(), None)),
    "DELETE /DM/schedules/{schedule}": _SCHEDULE,
    "POST /DM/schedules/{schedule}/pause": _SCHEDULE,
    "POST /DM/schedules/{schedule}/resume": _SCHEDULE,
    "POST /DM/schedules/{schedule}/run": _SCHEDULE,
    "POST /DM/audits": (Aim.PLACED, lambda w: ("", {"machine": w.machine})),
    "GET /DM/audits": (Aim.LISTED, lambda w: (w.audit(), None)),
    "GET /DM/audits/{audit}": (Aim.NAMED, lambda w: (w.audit(), None)),
    "GET /DM/audits/{audit}/findings": (Aim.NAMED, lambda w: (w.audit(), None)),
    "PUT /DM/objects/{uuid}/hold": (Aim.NAMED, lambda w: (w.object(), {"reason": "a paper"})),
    "DELETE /DM/objects/{uuid}/hold": _ONE_OBJECT,
    "PUT /DM/objects/{uuid}/lifetime": (Aim.NAMED, lambda w: (w.object(), {"lifetime": "30d"})),
    "GET /DM/retention/plan": (Aim.ANY, lambda _: ("", None)),
    "POST /DM/retention/run": (Aim.ANY, lambda _: ("", {"dry_run": True})),
    "POST /DM/retention/restore/{uuid}": _ONE_OBJECT,
    "GET /DM/retention/runs": (Aim.LISTED, lambda w: (w.run(), None)),
    "GET /DM/retention/runs/{run}": (Aim.NAMED, lambda w: (w.run(), None)),
    "POST /DM/tokens": (Aim.PLACED, lambda w: ("", {"name": uuid4().hex, "groups": [w.group]})),
    "GET /DM/withdrawn": (Aim.WHOLE, lambda _: ("", None)),
    "PUT /DM/withdrawn": (Aim.WHOLE, lambda _: ("", {"person": "nobody"})),
    "DELETE /DM/withdrawn": (Aim.WHOLE, lambda _: ("", {"person": "nobody"})),
    "GET /DM/tokens": (Aim.LISTED, lambda w: (w.token(), None)),
    "POST /DM/tokens/{id}/rotate": _TOKEN,
    "DELETE /DM/tokens/{id}": _TOKEN,
}
