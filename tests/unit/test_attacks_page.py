"""docs/reference/attacks.md is true to the tests: every test with the mark `attack` is in its table, and nothing else.

`python -m tests.unit.test_attacks_page` writes the table.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.unit.test_docs import table

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/reference/attacks.md"
LEAST = 30
"""Attacks in tests/security."""
CLASSES = {
    20: "Improper input validation",
    22: "Path traversal",
    59: "Link following",
    61: "Symbolic link following",
    78: "OS command injection",
    79: "Cross-site scripting",
    88: "Argument injection",
    89: "SQL injection",
    94: "Code injection",
    113: "HTTP response splitting",
    117: "Improper output neutralization for logs",
    130: "Improper handling of length parameter",
    150: "Improper neutralization of escape sequences",
    155: "Improper neutralization of wildcards",
    176: "Improper handling of Unicode encoding",
    204: "Observable response discrepancy",
    208: "Observable timing discrepancy",
    209: "Error message with sensitive information",
    214: "Process with visible sensitive information",
    250: "Execution with unnecessary privileges",
    269: "Improper privilege management",
    276: "Incorrect default permissions",
    287: "Improper authentication",
    288: "Authentication bypass by an alternate path",
    290: "Authentication bypass by spoofing",
    294: "Authentication bypass by capture-replay",
    295: "Improper certificate validation",
    306: "Missing authentication for a critical function",
    312: "Cleartext storage",
    319: "Cleartext transmission",
    322: "Key exchange without entity authentication",
    326: "Inadequate encryption strength",
    345: "Insufficient verification of data authenticity",
    346: "Origin validation error",
    347: "Improper verification of a signature",
    348: "Use of a less trusted source",
    350: "Reliance on reverse DNS, or on a rebound name",
    352: "Cross-site request forgery",
    354: "Improper validation of an integrity check value",
    367: "Time-of-check time-of-use race",
    384: "Session fixation",
    400: "Uncontrolled resource consumption",
    406: "Network amplification",
    409: "Data amplification by compression",
    410: "Insufficient resource pool",
    436: "Interpretation conflict",
    441: "Unintended proxy",
    444: "HTTP request smuggling",
    472: "External control of a parameter assumed immutable",
    522: "Insufficiently protected credentials",
    532: "Sensitive information in logs",
    565: "Reliance on cookies without validation",
    598: "Sensitive information in an address",
    601: "Open redirect",
    613: "Insufficient session expiration",
    636: "Not failing securely",
    639: "Authorization bypass through a user-controlled key",
    650: "Trusting the HTTP method",
    672: "Operation after expiration",
    674: "Uncontrolled recursion",
    732: "Incorrect permission of a critical resource",
    757: "Less secure algorithm by negotiation",
    770: "Allocation without limits",
    779: "Logging of excessive data",
    799: "Improper control of interaction frequency",
    836: "Use of a hash instead of a password",
    862: "Missing authorization",
    863: "Incorrect authorization",
    915: "Mass assignment",
    918: "Server-side request forgery",
    942: "Permissive cross-domain policy",
    1004: "Sensitive cookie without HttpOnly",
    1007: "Indistinguishable homoglyphs",
    1021: "Improper restriction of frames",
    1284: "Improper validation of a quantity",
    1333: "Inefficient regular expression",
    1336: "Template injection",
    1385: "Missing origin validation in WebSockets",
}
"""Short names of the classes (CWE, cwe.mitre.org)."""


@dataclass(frozen=True, order=True)
class MarkedAttack:
    """A test that is an attack."""

    cwe: int
    title: str
    test: str

    @property
    def row(self) -> list[str]:
        """Return its row of the page."""
        return [f"CWE-{self.cwe}", CLASSES[self.cwe], self.title, f"`{self.test}`"]


def attacks() -> Iterator[MarkedAttack]:
    """Yield all tests with the mark; it is read, as to collect them all would take seconds."""
    for file in sorted((ROOT / "tests").rglob("test_*.py")):
        text = file.read_text(encoding="utf-8")
        if "pytest.mark.attack(" not in text or file == Path(__file__):
            continue
        for node in ast.parse(text).body:
            for mark in getattr(node, "decorator_list", ()):
                if isinstance(node, ast.FunctionDef) and ast.unparse(mark).startswith("pytest.mark.attack("):
                    given = {one.arg: ast.literal_eval(one.value) for one in mark.keywords}
                    yield MarkedAttack(given["cwe"], given["title"], f"{file.relative_to(ROOT)}::{node.name}")


def test_page_of_attacks_matches_the_tests() -> None:
    assert table("attacks.md", "attacks") == [one.row for one in sorted(attacks())]


def test_attacks_are_many_and_each_is_another_one() -> None:
    found = list(attacks())
    assert len({(one.cwe, one.title) for one in found}) == len({one.test for one in found}) == len(found)
    assert sum(one.test.startswith("tests/security/") for one in found) >= LEAST
    marks = sum(
        len(re.findall(r"^@pytest\.mark\.attack\(", file.read_text(encoding="utf-8"), re.MULTILINE))
        for file in (ROOT / "tests").rglob("*.py")
    )
    assert marks == len(found)


def test_page_names_no_class_that_is_not_tried() -> None:
    assert {one.cwe for one in attacks()} == set(CLASSES)


def write() -> None:
    """Write the table of the page."""
    page = PAGE.read_text(encoding="utf-8")
    found = re.search(r"(<!-- attacks:.*?\|---[^\n]*\n).*?(<!-- end of attacks -->)", page, flags=re.DOTALL)
    assert found is not None
    rows = "".join(f"| {' | '.join(one.row)} |\n" for one in sorted(attacks()))
    PAGE.write_text(page[: found.start()] + found[1] + rows + found[2] + page[found.end() :], encoding="utf-8")


if __name__ == "__main__":
    write()
