"""What is private in Prefect is named in one module only, so that an upgrade has one place to be checked."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOM = ROOT / "deployments" / "orchestrator" / "prefect_private.py"
OURS = sorted(
    path for top in ("deployments", "flows", "api", "models", "datamanager") for path in (ROOT / top).rglob("*.py")
)
USERS = [
    path for path in OURS if path != ROOM and re.search(r"^\s*(from|import) prefect\b", path.read_text(), re.MULTILINE)
]


def is_private(name: str) -> bool:
    """Say whether one part of a dotted name is private; Python's own names with two underscores are not."""
    return any(part.startswith("_") and not part.endswith("__") for part in name.split("."))


def imported(tree: ast.AST) -> Iterator[str]:
    """Yield what a module imports of Prefect, as full names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.partition(".")[0] == "prefect")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "prefect":
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def private_names_of_prefect(ours: type) -> set[str]:
    """Return the private names that Prefect's classes above one of ours define, or set on their instances."""
    names = set[str]()
    for above in ours.__mro__:
        if above.__module__.partition(".")[0] == "prefect":
            names |= vars(above).keys() | set(re.findall(r"\bself\.(_\w+)", inspect.getsource(above)))
    return {name for name in names if is_private(name)}


@pytest.mark.parametrize("path", USERS, ids=lambda path: str(path.relative_to(ROOT)))
def test_module_imports_nothing_private_of_prefect(path: Path) -> None:
    assert [name for name in imported(ast.parse(path.read_text())) if is_private(name)] == []


@pytest.mark.parametrize("path", [path for path in OURS if path != ROOM and path.is_relative_to(ROOT / "deployments")])
def test_class_names_nothing_private_of_its_prefect_base(path: Path) -> None:
    text = path.read_text()
    classes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ClassDef) and node.bases]
    if not classes:
        return
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    for node in classes:
        private = private_names_of_prefect(getattr(module, node.name))
        named = {child.attr for child in ast.walk(node) if isinstance(child, ast.Attribute)}
        named |= {child.name for child in ast.walk(node) if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)}
        named |= {child.id for child in ast.walk(node) if isinstance(child, ast.Name)}
        assert named & private == set(), node.name


def test_ruff_forbids_private_members_of_others_without_exception() -> None:
    for path in USERS:
        assert not re.search(r"noqa:.*SLF", path.read_text()), path


def test_the_module_of_private_names_has_some() -> None:
    tree = ast.parse(ROOM.read_text())
    assert [name for name in imported(tree) if is_private(name)]
    module = importlib.import_module("deployments.orchestrator.prefect_private")
    assert {"_limit", "_work_queues"} <= private_names_of_prefect(module.PrefectWorker)
