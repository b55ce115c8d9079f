"""`dm machine trust` and `dm machine check` against real SSH servers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.process import clean_environment
from tests.support.sshd import PrivateSshd

ROOT = Path(__file__).parents[2]


class Desk:
    """A user's machines.toml with one machine, whose known_hosts file does not exist yet."""

    def __init__(self, folder: Path, server: PrivateSshd) -> None:
        self.known_hosts = folder / "ssh" / "known_hosts"
        data = folder / "data"
        data.mkdir()
        (folder / "machines.toml").write_text(
            "[machines.archer2]\n"
            'transport = "sftp"\n'
            f'host = "{server.host}"\nport = {server.port}\n'
            f'identity_file = "{server.client_key}"\nknown_hosts = "{self.known_hosts}"\nbase_dir = "{data}"\n'
        )
        self.env = clean_environment(DM_HOME=str(folder / "home"), DM_MACHINES=str(folder / "machines.toml"))

    def dm(self, *arguments: str, answer: str = "") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "datamanager.cli.main", "machine", *arguments]
        return subprocess.run(command, cwd=ROOT, env=self.env, input=answer, capture_output=True, text=True, timeout=60)


@pytest.fixture
def desk(tmp_path: Path, sshd_pair: tuple[PrivateSshd, PrivateSshd]) -> Desk:
    return Desk(tmp_path, sshd_pair[0])


def fingerprint(server: PrivateSshd) -> str:
    """Return what ssh-keygen says of the server's key: what an operator would publish."""
    command = ["ssh-keygen", "-lf", str(server.host_key.with_suffix(".pub"))]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[1]


def test_the_fingerprint_is_shown_and_pinned_after_yes(desk: Desk, sshd_pair: tuple[PrivateSshd, PrivateSshd]) -> None:
    assert desk.dm("check", "archer2").returncode == 1  # nobody trusts it yet
    done = desk.dm("trust", "archer2", answer="y\n")
    assert done.returncode == 0, done
    assert fingerprint(sshd_pair[0]) in done.stdout
    assert "ssh-ed25519" in done.stdout
    assert desk.known_hosts.read_text() == sshd_pair[0].known_host_line()
    checked = desk.dm("check", "archer2")
    assert checked.returncode == 0, checked
    assert "reachable" in checked.stdout


@pytest.mark.parametrize("answer", ["n\n", ""])
def test_without_a_yes_nothing_is_pinned(desk: Desk, answer: str) -> None:
    assert desk.dm("trust", "archer2", answer=answer).returncode == 1
    assert not desk.known_hosts.exists()


def test_a_pinned_key_is_not_pinned_twice(desk: Desk) -> None:
    assert desk.dm("trust", "archer2", "--yes").returncode == 0
    before = desk.known_hosts.read_text()
    again = desk.dm("trust", "archer2", "--yes")
    assert (again.returncode, desk.known_hosts.read_text()) == (0, before)
    assert "Already pinned" in again.stdout


def test_another_key_than_the_pinned_one_is_refused(desk: Desk, sshd_pair: tuple[PrivateSshd, PrivateSshd]) -> None:
    first, second = sshd_pair
    desk.known_hosts.parent.mkdir()
    theirs = second.known_host_line().split()[1:]
    pinned = " ".join([first.known_host_line().split()[0], *theirs]) + "\n"
    desk.known_hosts.write_text(pinned)
    done = desk.dm("trust", "archer2", "--yes")
    assert done.returncode == 1
    assert "REFUSED" in done.stderr
    assert "ssh-keygen -R" in done.stderr
    assert "Traceback" not in done.stderr
    assert desk.known_hosts.read_text() == pinned


def test_a_revoked_key_stays_refused(desk: Desk, sshd_pair: tuple[PrivateSshd, PrivateSshd]) -> None:
    desk.known_hosts.parent.mkdir()
    desk.known_hosts.write_text(f"@revoked {sshd_pair[0].known_host_line()}")
    done = desk.dm("trust", "archer2", "--yes")
    assert done.returncode == 1
    assert "revoked" in done.stderr


def test_a_machine_that_is_away(desk: Desk, tmp_path: Path) -> None:
    file = tmp_path / "machines.toml"
    file.write_text(file.read_text().replace("\nport = ", "\nport = 9 #"))
    done = desk.dm("trust", "archer2", "--yes")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
