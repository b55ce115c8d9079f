"""The table of planted faults fits the code: one that can be planted nowhere would prove nothing of the tests."""

from __future__ import annotations

import ast
import functools
import re

from tests.mutations.faults import FAULTS
from tests.mutations.planting import ROOT


@functools.cache
def text_of(file: str) -> str:
    return (ROOT / file).read_text()


def exists(test: str) -> bool:
    """Say whether a test, as pytest names it, or a file of tests is there."""
    file, _, name = test.partition("::")
    function = re.escape(name.partition("[")[0])
    there = (ROOT / file).is_file()
    return there and (not name or re.search(rf"^(async )?def {function}\(", text_of(file), re.MULTILINE) is not None)


def test_faults_are_sixty_with_names_of_their_own() -> None:
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 60


def test_fault_fits_the_code_in_one_place() -> None:
    assert [fault.name for fault in FAULTS if text_of(fault.file).count(fault.old) != 1] == []


def test_planted_fault_is_python() -> None:
    for fault in FAULTS:
        ast.parse(text_of(fault.file).replace(fault.old, fault.new), fault.name)


def test_fault_names_tests_that_exist() -> None:
    assert [fault.name for fault in FAULTS if not fault.tests or not all(map(exists, fault.tests))] == []
