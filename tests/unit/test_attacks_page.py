"""docs/reference/attacks.md lists the tests of attacks: those whose docstring begins with the class of one (CWE).

`python -m tests.unit.test_attacks_page` writes its table.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/reference/attacks.md"
CLASSES = re.compile(r"(CWE-\d+(?:, CWE-\d+)*)(?:\.|: (.+?)\.?)(?:\n|$)")
TABLE = re.compile(r"(<!-- attacks:.*?\|---[^\n]*\n)(.*?)(<!-- end of attacks -->)", re.DOTALL)


def attacks() -> Iterator[tuple[str, str, str, str]]:
    """Yield classes, attack, and the file and name of the test."""
    for file in sorted((ROOT / "tests").rglob("test_*.py")):
        for one in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(one, ast.FunctionDef) or not one.name.startswith("test_"):
                continue
            if found := CLASSES.match(ast.get_docstring(one) or ""):
                title = found[2] or one.name.removeprefix("test_").replace("_", " ")
                yield found[1], title, file.relative_to(ROOT).as_posix(), one.name


def written() -> str:
    """Return the rows of the table, by class."""
    rows = sorted(attacks(), key=lambda row: (int(row[0].split(",")[0].removeprefix("CWE-")), row[2:]))
    return "".join(f"| {classes} | {title} | `{file}::{name}` |\n" for classes, title, file, name in rows)


def table() -> re.Match[str]:
    found = TABLE.search(PAGE.read_text(encoding="utf-8"))
    assert found is not None
    return found


def test_page_has_every_attack() -> None:
    assert table()[2] == written()


def test_thirty_attacks_have_a_place_of_their_own() -> None:
    assert len([file for _, _, file, _ in attacks() if file.startswith("tests/security/")]) >= 30


if __name__ == "__main__":
    head, _, end = table().groups()
    PAGE.write_text(TABLE.sub(lambda _: head + written() + end, PAGE.read_text(encoding="utf-8")), encoding="utf-8")
