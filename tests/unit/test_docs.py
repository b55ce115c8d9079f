"""What the documents say exists: settings, machine keys, commands, links."""

from __future__ import annotations

import re
import tomllib
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import typer.main

from datamanager.cli.main import app
from datamanager.cli.options import SETTINGS
from datamanager.machines import Machine, parse_machines
from datamanager.settings import CREDENTIAL, Settings

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def table(name: str) -> list[list[str]]:
    """Return the rows of a marked table of the README, without its head."""
    between = README.split(f"<!-- {name}:")[1].split(f"<!-- end of {name} -->")[0]
    rows = [line for line in between.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]


def shown(value: Any) -> str:
    """Return how a default stands in the tables."""
    if value is None or value == ():
        return "–"
    if isinstance(value, timedelta):
        return f"`{value.total_seconds():.0f}`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value}`"


def settings_rows() -> list[list[str]]:
    """Return what the README's table of settings must be."""
    return [
        [f"`DM_{name.upper()}`", shown(field.get_default(call_default_factory=True)), SETTINGS[name]]
        for name, field in Settings.model_fields.items()
    ]


def test_the_table_of_settings_is_what_the_code_knows() -> None:
    assert table("settings") == settings_rows()


def test_the_table_of_machine_keys_is_what_the_code_knows() -> None:
    expected = [
        [f"`{name}`", "required" if field.is_required() else shown(field.default)]
        for name, field in Machine.model_fields.items()
        if name != "name"
    ]
    assert [row[:2] for row in table("machines")] == expected
    assert all(row[2] for row in table("machines"))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_variable_that_is_named_exists(document: Path) -> None:
    known = {f"DM_{name.upper()}" for name in Settings.model_fields} | {f"{CREDENTIAL}WEATHER"}
    named = set(re.findall(r"\bDM_[A-Z][A-Z_]*\b", document.read_text(encoding="utf-8")))
    prefixes = {name for name in named if name.endswith("_")}  # `DM_KEEP_…`
    assert {name for name in named - known - prefixes if not name.startswith("DM_TEST_")} == set()
    assert all(any(name.startswith(prefix) for name in known) for prefix in prefixes)


def commands() -> set[str]:
    """Return every command of `dm`, such as `machine trust`, and the groups themselves."""
    found = set()
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        found.add(name)
        found |= {f"{name} {sub}" for sub in getattr(command, "commands", {})}
    return found


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_that_is_named_exists(document: Path) -> None:
    known = commands()
    groups = {name.split()[0] for name in known if " " in name}
    for first, second in re.findall(r"(?:`|\$ |bin/)dm ([a-z]+)(?: ([a-z]+))?", document.read_text(encoding="utf-8")):
        assert (f"{first} {second}".strip() if first in groups else first) in known


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_file_that_is_linked_exists(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8")):
        assert (document.parent / target).exists(), target


def test_the_example_machine_can_be_configured() -> None:
    example = README.split("```toml\n")[1].split("```")[0]
    assert tomllib.loads(example)
    assert list(parse_machines(example, "README.md")) == ["archer2"]
