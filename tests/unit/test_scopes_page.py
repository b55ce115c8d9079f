"""docs/reference/scopes.md is true to the code: actions with their filters, roles, and what each endpoint requires.

`python -m tests.unit.test_scopes_page` writes its tables.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from fastapi import APIRouter, FastAPI

from api.access.asking import PUBLIC, required_scopes, requires
from api.app import create_app
from api.context import make_context
from datamanager.errors import InternalError
from datamanager.identity.roles import load_roles
from datamanager.identity.scopes import ACTIONS
from datamanager.machines import Machines
from datamanager.settings import Settings
from datamanager.transports.factory import Storages
from models.database import Database

PAGE = Path(__file__).parents[2] / "docs/reference/scopes.md"


def made(folder: Path) -> FastAPI:
    """Make the application; nothing is opened."""
    machines, database = Machines({}), Database(f"sqlite+pysqlite:///{folder / 'catalogue.db'}")
    return create_app(make_context(Settings(home=folder), machines, database, Storages(machines, folder)))


def tables(app: FastAPI) -> dict[str, list[list[str]]]:
    """Return the rows of the page's tables, by name."""
    return {
        "scopes": [
            [f"`{action}`", " ".join(f"`!{one}`" for one in sorted(filters)) or "–", text]
            for action, (text, filters) in ACTIONS.items()
        ],
        "roles": [
            [f"`{name}`", role.description, " ".join(f"`{scope}`" for scope in role.scopes)]
            for name, role in load_roles().roles.items()
        ],
        "endpoints": [
            [f"`{method} {path}`", " ".join(f"`{scope}`" for scope in scopes) or "any token"]
            for (path, method), scopes in required_scopes(app.routes).items()
        ],
    }


def written(rows: Iterable[list[str]]) -> str:
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def test_page_of_scopes_matches_the_code(tmp_path: Path) -> None:
    page = PAGE.read_text(encoding="utf-8")
    for name, rows in tables(made(tmp_path)).items():
        between = page.split(f"<!-- {name}:")[1].split(f"<!-- end of {name} -->")[0]
        assert between.partition("|---")[2].partition("\n")[2] == written(rows), name


def test_page_names_what_needs_no_token() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert all(f"`{path}`" in page for path in PUBLIC if path != "/")


def test_endpoint_that_declares_nothing_stops_the_start() -> None:
    router = APIRouter()

    @router.get("/DM/new")
    async def new() -> None: ...

    app = FastAPI()
    app.include_router(router)
    with pytest.raises(InternalError, match="/DM/new must declare"):
        required_scopes(app.routes)
    declaring = FastAPI()
    declaring.include_router(router, dependencies=[requires("audits")])
    assert required_scopes(declaring.routes) == {("/DM/new", "GET"): ["audits"]}
    with pytest.raises(InternalError, match="no actions"):
        requires("everything")


def write() -> None:
    """Write the tables of the page."""
    page = PAGE.read_text(encoding="utf-8")
    with TemporaryDirectory() as folder:
        for name, rows in tables(made(Path(folder))).items():
            pattern = rf"(<!-- {name}:.*?\|---[^\n]*\n).*?(<!-- end of {name} -->)"
            found = re.search(pattern, page, flags=re.DOTALL)
            assert found is not None, name
            page = page[: found.start()] + found[1] + written(rows) + found[2] + page[found.end() :]
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    write()
