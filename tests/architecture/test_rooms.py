"""The rooms of the house: small folders, short modules, a name for each thing (docs/architecture.md)."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PRODUCT = ("api", "flows", "models", "deployments", "datamanager")
MOST_MODULES = 12
"""Modules in a folder."""
MOST_LINES = 400
"""Lines of a module."""
ROLES = {
    # what a module is within its room; the room says of what
    "__init__",
    "routes",
    "views",
    "submission",
    "items",
    "listing",
    "runs",
    "report",
    "limits",
    "health",
    "context",
    "monitor",
    "idempotency",
    # one port, and what stands behind it
    "client",
    "files",
    "bulk",
    "batch",
    "errors",
    "probe",
}
"""Names of modules that several rooms may have."""
ROOMS_BY_CAPABILITY = ("datamanager/cli", "models/tables", "models/migrations/versions")
"""Folders whose modules are named by the capability that they belong to, as the rooms themselves are."""


def modules() -> Iterator[Path]:
    """Yield the product's modules, relative to the checkout."""
    for top in PRODUCT:
        yield from (path.relative_to(ROOT) for path in sorted((ROOT / top).rglob("*.py")))


def test_a_folder_holds_few_modules() -> None:
    folders: dict[str, int] = defaultdict(int)
    for path in modules():
        if path.stem != "__init__" and not str(path.parent).endswith("versions"):
            folders[str(path.parent)] += 1
    assert {folder: count for folder, count in folders.items() if count > MOST_MODULES} == {}


def test_a_module_is_short() -> None:
    long = {
        str(path): lines for path in modules() if (lines := len((ROOT / path).read_text().splitlines())) > MOST_LINES
    }
    assert long == {}


def test_a_module_name_stands_once() -> None:
    found: dict[str, list[str]] = defaultdict(list)
    for path in modules():
        if path.stem not in ROLES and str(path.parent) not in ROOMS_BY_CAPABILITY:
            found[path.stem].append(str(path))
    assert {name: paths for name, paths in found.items() if len(paths) > 1} == {}


def test_a_public_class_name_stands_once() -> None:
    found: dict[str, list[str]] = defaultdict(list)
    for path in modules():
        for node in ast.parse((ROOT / path).read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found[node.name].append(str(path))
    assert {name: paths for name, paths in found.items() if len(paths) > 1} == {}
