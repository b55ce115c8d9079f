"""The `dm` command as a user types it: flags, exit codes, one line of error and never a trace."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from typer.testing import CliRunner

from datamanager.cli import main as cli
from datamanager.cli.application import become
from datamanager.cli.options import SETTINGS, flag
from datamanager.cli.tables import Listing
from datamanager.settings import Settings
from deployments import db
from tests.support import command
from tests.support.process import clean_environment

ROOT = Path(__file__).parents[2]
MACHINES = """\
[machines.here]
transport = "local"
base_dir = "{folder}"
[machines.away]
transport = "sftp"
host = "away.example"
port = 2222
base_dir = "/data"
"""


def dm(*arguments: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run `dm` as a process."""
    argv = [sys.executable, "-m", "datamanager.cli.main", *arguments]
    environment = clean_environment(COLUMNS="200", **(env or {}))
    return subprocess.run(
        argv, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300
    )


def refused(done: subprocess.CompletedProcess[str] | command.Done, code: int) -> str:
    """Assert that the command ended with one line on standard error; return it."""
    assert done.returncode == code, done
    assert done.stderr.count("\n") == 1, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.fixture
def machines(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "machines.toml").write_text(MACHINES.format(folder=tmp_path))
    return {"DM_HOME": str(tmp_path / "home"), "DM_MACHINES": str(tmp_path / "machines.toml")}


def test_settings_are_described_flags() -> None:
    assert list(SETTINGS) == list(Settings.model_fields)
    assert all(SETTINGS.values())
    shown = CliRunner().invoke(cli.app, ["up", "--help"], env={"COLUMNS": "200"}).output
    for name in Settings.model_fields:
        assert flag(name) in shown
        assert f"[DM_{name.upper()}]" in shown


@pytest.mark.parametrize(
    ("arguments", "env", "named"),
    [
        (["up"], {"DM_PROT": "1"}, "DM_PROT"),
        (["up", "--port", "many"], {}, "DM_PORT"),
        (["up", "--host", "0.0.0.0"], {}, "DM_TLS_CERT"),
        (["mover", "--lease", "1"], {}, "DM_LEASE"),
        (["api", "--database-url", "mysql://x/y"], {}, "DM_DATABASE_URL"),
        (["machine", "list"], {"DM_PREFECT_PORT": "0"}, "DM_PREFECT_PORT"),
        (["machine", "list"], {"DM_MACHINES": "/nowhere/machines.toml"}, "/nowhere/machines.toml"),
    ],
)
def test_dm_reports_bad_setting_in_one_line(arguments: list[str], env: dict[str, str], named: str) -> None:
    assert named in refused(command.run(*arguments, env=env), 2)


def test_dm_hides_password_of_bad_url() -> None:
    assert "hunter2" not in refused(command.run("up", "--database-url", "mysql://me:hunter2@host/x", env={}), 2)


def test_flags_reach_the_application_as_environment(tmp_path: Path) -> None:
    done = dm("up", "--home", str(tmp_path), "--port", "4242", "--prefect-port", "4242", "--confirm-base-dir")
    assert "4242" in refused(done, 2)  # said by deployments.local.up itself
    assert done.stderr.startswith("dm up: DM_PREFECT_PORT")


def test_become_passes_passwords_in_environment_only(monkeypatch: pytest.MonkeyPatch) -> None:
    class Became(Exception):
        pass

    def execve(*given: object) -> None:
        raise Became(*given)

    monkeypatch.setattr(os, "execve", execve)
    with pytest.raises(Became) as caught:
        become("local.up", {"DM_AMQP_URL": "amqp://me:hunter2@host/"})
    path, argv, env = caught.value.args
    assert argv == [sys.executable, "-m", "deployments.local.up"]
    assert path == sys.executable
    assert env["DM_AMQP_URL"] == "amqp://me:hunter2@host/"
    assert env["PYTHONSAFEPATH"] == "1"


def test_become_imports_nothing_from_current_folder(tmp_path: Path) -> None:
    (tmp_path / "uvicorn.py").write_text("raise SystemExit('not mine')")
    home = tmp_path / "home"
    (tmp_path / "deployments").mkdir()
    argv = [sys.executable, "-P", "-m", "datamanager.cli.main", "db", "current"]
    environment = clean_environment(DM_HOME=str(home), PYTHONPATH=str(ROOT))
    done = subprocess.run(argv, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, "empty\n"), done.stderr


def test_db_upgrade_current_downgrade(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process; test_become_imports_nothing_from_current_folder starts the same as a real one."""
    monkeypatch.setenv("DM_HOME", str(tmp_path / "home"))

    def printed(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["dm db", *arguments])
        assert db.main() == 0
        return capsys.readouterr().out

    assert printed("current") == "empty\n"
    revision = printed("upgrade")
    assert revision == printed("current") != "empty\n"
    assert printed("downgrade", "base") == "empty\n"
    assert (tmp_path / "home").stat().st_mode & 0o777 == 0o700


def test_machine_list(machines: dict[str, str]) -> None:
    done = command.run("machine", "list", env=machines)
    assert done.returncode == 0, done.stderr
    assert "this host" in done.stdout
    assert "away.example:2222" in done.stdout


def test_listing_prints_whole_cells_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    table = Listing("task", "why")
    table.add("eb63fdfd-a4ba-49c2-9d0f-000000000000", "[red]:fire: " + "x" * 300)
    table.add(None, "\x1b[2Jgone\n")
    table.print()
    head, first, second = capsys.readouterr().out.splitlines()
    assert head.split() == ["task", "why"]
    assert first.split() == ["eb63fdfd-a4ba-49c2-9d0f-000000000000", "[red]:fire:", "x" * 300]
    assert second.strip() == r"'\x1b[2Jgone\n'"


def test_machine_check_of_this_host(machines: dict[str, str]) -> None:
    done = command.run("machine", "check", "here", env=machines)
    assert done.returncode == 0, done.stderr
    assert "reachable" in done.stdout
    assert "GB" in done.stdout


def test_machine_check_refuses_unknown_machine(machines: dict[str, str]) -> None:
    line = refused(command.run("machine", "check", "elsewhere", env=machines), 2)
    assert "elsewhere" in line
    assert "away, here" in line


def test_machine_trust_refuses_local_machine(machines: dict[str, str]) -> None:
    assert "local" in refused(command.run("machine", "trust", "here", env=machines), 2)


def test_version() -> None:
    assert dm("version").stdout.strip()
