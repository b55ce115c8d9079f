"""What is built and installed: the wheel's contents, the declared dependencies, the locks."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
LIBRARY = ("datamanager",)
APPLICATION = ("models", "api", "flows", "deployments")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LOCKS = ["requirements.lock", "requirements-dev.lock"]
OURS = [
    *(ROOT / top for top in (*LIBRARY, *APPLICATION, "tests", "docs", "benchmarks", ".ci")),
    *(path for path in ROOT.iterdir() if path.is_file()),
]


def normalised(requirement: str) -> str:
    """Return a requirement's project name as indexes compare it (PEP 503)."""
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert name is not None
    return re.sub(r"[-_.]+", "-", name[0]).lower()


def imported_by(tops: tuple[str, ...]) -> dict[str, str]:
    """Return the third-party modules that packages import, each with a file that does."""
    # `compression` is the standard library's from Python 3.14 on; before that its backport is imported instead
    known = {*LIBRARY, *APPLICATION, "tests", "compression", *sys.stdlib_module_names}
    found: dict[str, str] = {}
    for path in (path for top in tops for path in (ROOT / top).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in (name.partition(".")[0] for name in names):
                if name not in known:
                    found[name] = str(path.relative_to(ROOT))
    return found


def test_the_wheel_holds_the_library_and_nothing_else(tmp_path: Path) -> None:
    # from a copy: a build leaves folders behind
    checkout = tmp_path / "checkout"
    skip = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist")
    shutil.copytree(ROOT, checkout, ignore=skip)
    command = [sys.executable, "-m", "pip", "wheel", "-qq", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "-w", str(tmp_path), str(checkout)], check=True, stdin=subprocess.DEVNULL)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"datamanager"}
    scripts = {str(path.relative_to(ROOT)) for path in (ROOT / "datamanager").rglob("*.sh")}
    assert scripts
    assert {"datamanager/settings.py", "datamanager/identity/roles.toml", *scripts} <= set(names)


@pytest.mark.parametrize(
    ("tops", "extras"), [(LIBRARY, []), (APPLICATION, ["service"])], ids=["library", "application"]
)
def test_what_is_imported_is_declared(tops: tuple[str, ...], extras: list[str]) -> None:
    lists = [PROJECT["dependencies"], *(PROJECT["optional-dependencies"][extra] for extra in extras)]
    declared = {normalised(requirement) for requirements in lists for requirement in requirements}
    distributions = packages_distributions()
    for module, path in imported_by(tops).items():
        owners = {normalised(owner) for owner in distributions.get(module, [])}
        assert owners & declared, f"{path} imports {module}, which no declared dependency provides"


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_pins_everything_that_is_declared_with_hashes_and_names_no_place(lock: str) -> None:
    text = (ROOT / lock).read_text(encoding="utf-8")
    entries = re.split(r"^(?=[a-z0-9])", text, flags=re.MULTILINE)[1:]
    pinned = {}
    for entry in entries:
        name = re.match(r"([a-z0-9._-]+)==(\S+)", entry)
        assert name is not None, entry
        assert "--hash=sha256:" in entry, name[0]
        pinned[normalised(name[1])] = name[2]
    extras = PROJECT["optional-dependencies"]
    wanted = [*PROJECT["dependencies"], *extras["service"], "setuptools", "wheel"]
    wanted += extras["dev"] if "dev" in lock else []
    assert {normalised(requirement) for requirement in wanted} <= set(pinned)
    options = [line for line in text.splitlines() if line.startswith("-")]
    assert options == []
    assert "://" not in text


@pytest.mark.parametrize("python", ["3.11.2", "3.11.14", "3.12.12", "3.13.9"])
def test_the_lock_is_complete_for_other_pythons_too(python: str) -> None:
    """A lock is made with one Python; Debian 12 has 3.11.2, for which some libraries need one more library."""
    pinned = dict(re.findall(r"^([a-z0-9._-]+)==(\S+)", (ROOT / LOCKS[0]).read_text("utf-8"), re.MULTILINE))
    environment = {"python_full_version": python, "python_version": python.rpartition(".")[0], "extra": ""}
    wrong = set()
    for name in pinned:
        for line in requires(name) or []:
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate(environment):
                version = pinned.get(normalised(needed.name))
                if version is None or not needed.specifier.contains(version, prereleases=True):
                    wrong.add(f"{name} needs {line}, the lock has {version}")
    assert wrong == set()


def test_both_locks_agree() -> None:
    pins = [set(re.findall(r"^[a-z0-9._-]+==\S+", (ROOT / lock).read_text("utf-8"), re.MULTILINE)) for lock in LOCKS]
    assert pins[0] <= pins[1]


def test_no_file_names_a_package_registry() -> None:
    # written in pieces, or this file would name them itself
    hosts = [
        "pypi" + ".org",
        "python" + "hosted",
        "deb." + "debian",
        "registry.npm" + "js",
        "docker" + ".io",
        "proxy.go" + "lang",
    ]
    for place in OURS:
        for path in [place] if place.is_file() else place.rglob("*"):
            if path.is_file() and path.suffix not in {".pyc", ".png", ".so"}:
                text = path.read_text(encoding="utf-8", errors="replace")
                assert not [host for host in hosts if host in text], path
