"""The documents are true to the code: settings, machine keys, commands, links, citations; and they fit a screen."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer.main

from datamanager.cli.main import app
from datamanager.cli.options import SETTINGS
from datamanager.machines import Machine, parse_machines
from datamanager.settings import CREDENTIAL, TOKEN, Settings

ROOT = Path(__file__).parents[2]
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
PACKAGES = ("datamanager", "models", "api", "flows", "deployments", "tests", "benchmarks")
LINE_MAX = 120

CITATION = re.compile(r"(?<![\w./:\"'-])(?:docs/[\w./-]*\w|[\w./-]*\w\.md\b)")
"""A path below docs/, or the name of a Markdown file; neither a part of a URL nor a string of the code."""
FENCE = re.compile(r"^\s*```.*?^\s*```", re.DOTALL | re.MULTILINE)


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def name_of(document: Path) -> str:
    return document.relative_to(ROOT).as_posix()


def table(page: str, name: str) -> list[list[str]]:
    """Return the rows of a marked table of a reference page, without its head."""
    between = read(ROOT / "docs/reference" / page).split(f"<!-- {name}:")[1].split(f"<!-- end of {name} -->")[0]
    rows = [line for line in between.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]


def shown(value: Any) -> str:
    """Return a default as the tables show it."""
    if value is None or value == ():
        return "–"
    if isinstance(value, tuple):
        return f"`{','.join(value)}`"
    if isinstance(value, timedelta):
        return f"`{value.total_seconds():.0f}`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value}`"


def settings_rows() -> list[list[str]]:
    """Return the rows that the table of settings must have."""
    return [
        [f"`DM_{name.upper()}`", shown(field.get_default(call_default_factory=True)), SETTINGS[name]]
        for name, field in Settings.model_fields.items()
    ]


def test_settings_page_matches_the_code() -> None:
    assert table("settings.md", "settings") == settings_rows()


def test_machines_page_matches_the_code() -> None:
    expected = [
        [f"`{name}`", "required" if field.is_required() else shown(field.default)]
        for name, field in Machine.model_fields.items()
        if name != "name"
    ]
    rows = table("machines.md", "machines")
    assert [row[:2] for row in rows] == expected
    assert all(row[2] for row in rows)


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_document_names_existing_variables(document: Path) -> None:
    known = {f"DM_{name.upper()}" for name in Settings.model_fields} | {f"{CREDENTIAL}WEATHER", TOKEN}
    named = set(re.findall(r"\bDM_[A-Z][A-Z_]*\b", read(document)))
    prefixes = {name for name in named if name.endswith("_")}  # `DM_KEEP_…`
    assert {name for name in named - known - prefixes if not name.startswith("DM_TEST_")} == set()
    assert all(any(name.startswith(prefix) for name in known) for prefix in prefixes)


@cache
def commands() -> frozenset[str]:
    """Return every command of `dm`, such as `machine trust`, and the groups themselves."""
    found = set()
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        found.add(name)
        found |= {f"{name} {sub}" for sub in getattr(command, "commands", {})}
    return frozenset(found)


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_document_names_existing_commands(document: Path) -> None:
    known = commands()
    groups = {name.split()[0] for name in known if " " in name}
    for first, second in re.findall(r"(?:`|\$ |bin/)dm ([a-z]+)(?: ([a-z]+))?", read(document)):
        assert (f"{first} {second}".strip() if first in groups else first) in known


def anchors(document: Path) -> set[str]:
    """Return the anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", read(document)), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_document_links_to_existing_files_and_headings(document: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", read(document)):
        file = document.parent / target if target else document
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), f"{target}#{anchor}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_document_lines_fit_a_screen(document: Path) -> None:
    prose = [line for line in FENCE.sub("", read(document)).splitlines() if not line.startswith("|")]  # a row is a line
    assert [line for line in prose if len(line) > LINE_MAX] == []


def citing_files() -> Iterator[Path]:
    """Yield every file that may cite a document: documents, code, and what builds, tests and runs it."""
    yield from DOCUMENTS
    yield from (ROOT / "Makefile", ROOT / ".ci/run", ROOT / "pyproject.toml", ROOT / "prefect.yaml")
    for package in PACKAGES:
        yield from (path for path in (ROOT / package).rglob("*") if path.is_file() and "__pycache__" not in path.parts)


def test_cited_documents_exist() -> None:
    missing = {
        f"{path.relative_to(ROOT)}: {cited}"
        for path in citing_files()
        for cited in CITATION.findall(path.read_text(encoding="utf-8", errors="ignore"))
        if not any(list(folder.glob(f"{cited}*")) for folder in (ROOT, path.parent))
    }
    assert missing == set()


@pytest.mark.parametrize("document", [one for one in DOCUMENTS if one.name != "CHANGELOG.md"], ids=name_of)
def test_document_names_existing_code(document: Path) -> None:
    text = read(document)
    paths = re.findall(rf"`((?:{'|'.join(PACKAGES)})/[\w./-]*)`", text)
    paths += [f"{module.replace('.', '/')}.py" for module in re.findall(r"python -m (deployments[\w.]*\w)", text)]
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_readme_example_machine_can_be_configured() -> None:
    example = read(ROOT / "README.md").split("```toml\n")[1].split("```")[0]
    assert tomllib.loads(example)
    assert list(parse_machines(example, "README.md")) == ["archer2"]
