"""The README's first session, run as it is printed, in a shell, against a real service and a real SSH machine."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.ports import free_port
from tests.support.process import clean_environment
from tests.support.programs import find_program
from tests.support.site import Site

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
SESSION = README.split("## First session")[1].split("## Documentation")[0]


def blocks(language: str) -> str:
    """Return the session's code in one language."""
    return "\n".join(re.findall(rf"```{language}\n(.*?)```", SESSION, re.DOTALL))


@dataclass
class Reader:
    """A reader of the README: a home folder, a shell, a service with the machines localhost and archer2."""

    home: Path
    site: Site
    web_port: int = field(default_factory=free_port)

    def as_printed(self, code: str) -> str:
        """Replace the default ports of the README by those of the test."""
        code = code.replace("http://127.0.0.1:5000", self.site.service.url)
        return re.sub(r"\b8000\b", str(self.web_port), code)


@pytest.fixture(scope="module")
def reader(open_site: Site) -> Reader:
    return Reader(open_site.service.home.parent, open_site)


def test_readme_shell_session_works_as_printed(reader: Reader) -> None:
    find_program("curl")
    script = "set -eux\n" + reader.as_printed(blocks("sh")) + '\nprintf "\\n%s %s %s\\n" "$ID" "$COPY" "$FETCHED"\n'
    done = subprocess.run(
        [find_program("bash"), "-c", script],
        env=clean_environment(HOME=str(reader.home), DM_PORT=str(reader.site.service.port)),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done
    assert "/DM/register/tree" in done.stderr
    token = reader.site.service.token
    assert token
    assert token not in done.stderr  # in the arguments of a program any user of the host could read it
    assert '"code"' not in done.stdout, done.stdout  # no problem document
    assert "Move successful" in done.stdout
    assert "archer2:archive/2026/june.nc deleted" in done.stdout
    original, copy, fetched = done.stdout.splitlines()[-1].split()
    site, data = reader.site, b"rain, then fire\n"
    assert (site.info(original)["status"], site.read("localhost", "weather/june.nc")) == ("ACTIVE", data)
    assert (site.info(copy)["status"], site.exists("archer2", "archive/2026/june.nc")) == ("DELETED", False)
    assert site.info(fetched)["status"] == "ACTIVE"
    assert site.read("archer2", "downloads/june.nc") == data
    assert site.read("archer2", "weather/june-again.nc") == data


def test_readme_python_session_works_after_it(reader: Reader) -> None:
    script = reader.as_printed(blocks("python"))
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=clean_environment(HOME=str(reader.home)),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout.startswith("sha256:"), done
    with reader.site.service.client() as client:
        found = [one.status for one in client.objects(machine="archer2", path="weather", filename="june.nc")]
    assert found == ["ACTIVE"]
