"""Every route under /DM says what it may answer, and the document is whole; nothing in it comes from the internet."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute

from api.app import ROUTED, create_app
from api.context import make_context
from api.http.problems import describe_code, status_of
from datamanager.errors import TransferError, TransportError, every_error
from datamanager.machines import Machine, Machines, TransportKind
from datamanager.settings import Settings
from datamanager.transports.factory import Storages
from models.database import Database

# the contract's endpoints; both methods and both addresses where clients use both
ROUTES = {
    "/DM/info": {"GET"},
    "/DM/info/": {"GET"},
    "/DM/info/{uuid}": {"GET"},
    "/DM/register": {"PUT"},
    "/DM/copy/{uuid}": {"POST"},
    "/DM/move/{uuid}": {"POST"},
    "/DM/delete/{uuid}": {"DELETE"},
    "/DM/getexternal": {"PUT"},
    "/DM/archive/{uuid}": {"POST", "PUT"},
    "/DM/activate/{uuid}": {"POST", "PUT"},
    "/DM/async/copy/{uuid}": {"POST"},
    "/DM/async/move/{uuid}": {"POST"},
    "/DM/async/archive": {"POST"},
    "/DM/async/activate": {"POST"},
    "/DM/async/archive/{uuid}": {"POST", "PUT"},
    "/DM/async/activate/{uuid}": {"POST", "PUT"},
    "/DM/async/getexternal": {"POST", "PUT"},
    "/DM/async/getexternal/": {"POST", "PUT"},
    "/DM/async/status": {"GET"},
    "/DM/async/status/": {"GET"},
    "/DM/async/status/{task}": {"GET", "PATCH", "DELETE"},
    "/DM/async/{task}/pause": {"POST"},
    "/DM/async/{task}/resume": {"POST"},
    "/DM/async/status/{task}/items": {"GET"},
    "/DM/async/copy": {"POST"},
    "/DM/async/move": {"POST"},
    "/DM/register/tree": {"POST"},
    "/DM/audits": {"GET", "POST"},
    "/DM/audits/{audit}": {"GET"},
    "/DM/audits/{audit}/findings": {"GET"},
    "/DM/machines": {"GET"},
    "/DM/machines/{name}": {"PATCH"},
    "/DM/machines/{name}/limits": {"DELETE"},
    "/DM/health/live": {"GET"},
    "/DM/health/ready": {"GET"},
}
FORMS = {"application/x-www-form-urlencoded", "multipart/form-data", "application/json"}


@pytest.fixture
def app(tmp_path: Path) -> Iterator[FastAPI]:
    configured = Machines({"here": Machine(name="here", transport=TransportKind.LOCAL, base_dir=str(tmp_path))})
    database = Database(f"sqlite+pysqlite:///{tmp_path / 'catalogue.db'}")
    storages = Storages(configured, tmp_path / "run")
    yield create_app(make_context(Settings(home=tmp_path / "home"), configured, database, storages))
    database.close()
    assert not list(tmp_path.iterdir())  # making an app opens nothing


def operations(app: FastAPI) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in app.openapi()["paths"].items():
        for method, operation in methods.items():
            yield path, method.upper(), operation


def test_every_endpoint_of_the_contract_is_there(app: FastAPI) -> None:
    found: dict[str, set[str]] = {}
    for path, method, _ in operations(app):
        found.setdefault(path, set()).add(method)
    for route in (route for module in ROUTED for route in module.router.routes):
        if isinstance(route, APIRoute):  # those that the document does not show as well
            found.setdefault(route.path, set()).update(route.methods or ())
    for path, methods in ROUTES.items():
        assert found.get(path, set()) >= methods, path


def test_every_route_documents_itself_and_its_errors(app: FastAPI) -> None:
    documented = list(operations(app))
    assert len(documented) >= 22
    for path, method, operation in documented:
        where = f"{method} {path}"
        assert operation["summary"], where
        assert operation["description"], where
        assert operation["tags"], where
        assert {"400", "403", "500", "503"} <= set(operation["responses"]), where
        assert "malformed_http" in operation["responses"]["400"]["content"]["application/problem+json"]["examples"]
        assert ({"502", "504"} <= set(operation["responses"])) == ("security" in operation), where
        if "{" in path:  # an unknown machine is a wrong request, wherever it is named
            assert ("422" if "{name}" in path else "404") in operation["responses"], where
        for status, response in operation["responses"].items():
            assert response["description"], (where, status)
            if int(status) >= 400:
                examples = response["content"]["application/problem+json"]["examples"]
                assert examples, (where, status)
                for code, example in examples.items():
                    assert example["value"]["status"] == int(status), (where, code)
                    assert describe_code(code) is not None, (where, code)
            else:
                assert response["content"], (where, status)


def test_endpoints_that_wait_document_each_end_of_a_transfer(app: FastAPI) -> None:
    ends = {str(status_of(cls)) for cls in every_error() if issubclass(cls, TransportError | TransferError)}
    waiting = [f"{method} {path}" for path, method, one in operations(app) if "wait=n" in str(one.get("parameters"))]
    assert len(waiting) == 9
    for path, method, operation in operations(app):
        if f"{method} {path}" in waiting and method != "GET":
            assert ends <= set(operation["responses"]), path
    download = app.openapi()["paths"]["/DM/getexternal"]["put"]["responses"]
    assert {"200", "201", "202"} <= set(download)  # 200: of `if_newer_than`


def test_bodies_are_documented_in_every_kind_with_an_example(app: FastAPI) -> None:
    for path, method, operation in operations(app):
        if path.startswith(
            ("/DM/register", "/DM/copy", "/DM/move", "/DM/getexternal", "/DM/async/copy", "/DM/async/move")
        ):
            content = operation["requestBody"]["content"]
            batch = path in ("/DM/async/copy", "/DM/async/move")  # a form can't hold its items
            assert set(content) == ({"application/json"} if batch else FORMS), path
            assert all(entry["example"]["machine"] for entry in content.values()), path
        secret = path in ("/DM/tokens", "/DM/tokens/{id}/rotate")  # their answers are not kept
        if method in ("PUT", "POST", "PATCH", "DELETE") and "501" not in operation["responses"] and not secret:
            assert "Idempotency-Key" in {header["name"] for header in operation["parameters"]}, path


def test_every_reference_leads_somewhere(app: FastAPI) -> None:
    document = app.openapi()
    names = set(re.findall(r"'#/components/schemas/([^']+)'", str(document)))
    assert names <= set(document["components"]["schemas"])
    assert {"Problem", "ObjectView", "TaskView", "MachineView", "ItemView", "TreeView", "RegisterRequest"} <= names
    assert "HTTPValidationError" not in str(document)


def test_the_pages_assets_are_here(app: FastAPI) -> None:
    assets = resources.files("fastapi_offline") / "static"
    text = (assets / "swagger-ui-bundle.js").read_text(encoding="utf-8")
    # OpenAPI 3.1 needs Swagger UI 5
    assert re.search(r'PACKAGE_VERSION:"5\.', text)
    assert (assets / "swagger-ui.css").is_file()
