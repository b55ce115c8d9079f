"""Runs are added to the results file, and the document's table is what the file says."""

from __future__ import annotations

from pathlib import Path

from tests.faults.results import BEGIN, DOCUMENT, END, Results, table_of

FILE = Path(__file__).with_name("results.json")


def test_runs_are_added_and_published(tmp_path: Path) -> None:
    document = tmp_path / "page.md"
    document.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    results = Results(tmp_path / "results.json", document)
    results.add("disk full", "copy", 1, "COMPLETE", [])
    results.add("disk full", "copy", 2, "no_space", [])
    Results(tmp_path / "results.json", document).add("disk full", "move", 3, "RUNNING", ["it did not end"])
    results.publish()
    text = document.read_text()
    assert "2 runs, 0 violations: 1 COMPLETE, 1 no_space" in text
    assert "1 runs, **1 violations**: 1 RUNNING" in text
    assert "3 runs, 1 of them with a violation." in text
    assert text.startswith(f"before\n{BEGIN}\n|")
    assert text.endswith(f"{END}\nafter\n")
    assert "old" not in text
    assert results.read()["disk full"]["move"]["violated"] == ["seed 3: it did not end"]


def test_the_document_says_what_the_results_file_says() -> None:
    assert f"{BEGIN}\n{table_of(Results(FILE).read())}{END}" in DOCUMENT.read_text(encoding="utf-8")
