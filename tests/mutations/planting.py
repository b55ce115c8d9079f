"""Plant one fault in a copy of the checkout, and run the tests that are to catch it there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
COPIED = ("api", "flows", "models", "deployments", "datamanager", "tests", "pyproject.toml", "prefect.yaml")
TIMEOUT = 600
"""Seconds that the tests of one fault may take."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What is done to one file: `old`, which stands in it once, becomes `new`. `tests` are to catch it: files or tests
    of `make test`, as pytest names them.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of a fault: the first test that failed, None when none did; `seconds` that it took."""

    fault: Fault
    caught_by: str | None
    seconds: float


@contextmanager
def copy_of_checkout(folder: Path) -> Iterator[Path]:
    """Yield a copy of what is tested, without history and caches."""
    skip = shutil.ignore_patterns("__pycache__", ".*", "*.egg-info")
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=skip)
        else:
            shutil.copy2(ROOT / name, folder / name)
    yield folder


def planted(copy: Path, fault: Fault) -> str:
    """Plant the fault; return what the file held before. Raises: ValueError when it does not fit the code any more."""
    file = copy / fault.file
    text = file.read_text()
    if text.count(fault.old) != 1:
        raise ValueError(f"{fault.name}: {fault.file} holds {text.count(fault.old)} times:\n{fault.old}")
    file.write_text(text.replace(fault.old, fault.new))
    return text


def try_fault(copy: Path, fault: Fault) -> Verdict:
    """Run the tests of a fault with it planted; the copy is as it was afterwards.

    Raises: ValueError when the fault does not fit the code; RuntimeError when tests could not be run at all, which
    would look like a fault that was caught.
    """
    before = planted(copy, fault)
    started = time.monotonic()
    # the copy goes before the checkout that the virtual environment names, also in the processes that tests start
    environment = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-m", "not slow", *fault.tests]
    try:
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        return Verdict(fault, f"{fault.tests[0]} (no end within {TIMEOUT} s)", time.monotonic() - started)
    finally:
        (copy / fault.file).write_text(before)
    failed = re.search(r"^FAILED (.+?)(?: - |$)", done.stdout, re.MULTILINE)
    if done.returncode not in (0, 1) or (done.returncode == 1 and failed is None):
        raise RuntimeError(f"{fault.name}: the tests did not run\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return Verdict(fault, failed[1] if failed else None, time.monotonic() - started)
