"""machines.toml: what may be in it, and one clear line for what may not."""

from __future__ import annotations

from pathlib import Path

import pytest

from datamanager.errors import SettingsError, UnknownMachine
from datamanager.machines import (
    ArchiveRules,
    Connection,
    Machines,
    TransportKind,
    VerifyPolicy,
    load_machines,
    parse_machines,
    parse_rate,
)

LOCAL = '[machines.here]\ntransport = "local"\nbase_dir = "/data"\n'
SFTP = '[machines.far]\ntransport = "sftp"\nhost = "far.example"\nbase_dir = "/home/me"\n'


def refused(text: str) -> str:
    """Return the one line that refuses a machines.toml."""
    with pytest.raises(SettingsError) as error:
        parse_machines(text, "machines.toml")
    assert "\n" not in error.value.detail
    assert error.value.detail.startswith("machines.toml: ")
    return error.value.detail


def test_defaults() -> None:
    machines = parse_machines(LOCAL + SFTP, "machines.toml")
    assert list(machines) == ["here", "far"]
    far = machines["far"]
    assert (far.name, far.transport, far.host, far.port, far.username) == (
        "far",
        TransportKind.SFTP,
        "far.example",
        None,
        None,
    )
    assert (far.connection, far.max_connections, far.verify) == (Connection.AUTO, 8, VerifyPolicy.SHA256)
    assert (far.archive, far.direct, far.bandwidth) == (False, False, None)


def test_every_key() -> None:
    text = (
        SFTP
        + """
        port = 2222
        username = "vestec"
        identity_file = "~/.ssh/id"
        known_hosts = "~/.ssh/known_hosts"
        connection = "paramiko"
        max_connections = 8
        connect_timeout = 3.5
        stall_timeout = 20
        archive = true
        archive_dir = "long/term"
        stage_command = ["stage", "--file={path}"]
        stage_poll = ["is-online", "{path}"]
        direct = true
        direct_host = "far.internal"
        forward_agent = true
        verify = "size"
        bandwidth = "200MB/s"
        max_transfers = 12
    """
    )
    far = parse_machines(text, "machines.toml")["far"]
    assert far.identity_file == Path("~/.ssh/id").expanduser()
    assert (far.port, far.bandwidth, far.verify, far.connection) == (2222, 200_000_000, "size", "paramiko")
    assert far.max_transfers == 12
    assert far.archive is far.direct is far.forward_agent is True
    assert far.direct_host == "far.internal"
    assert (far.archive_dir, far.stage_command, far.stage_every) == ("long/term", ("stage", "--file={path}"), 60.0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no machine"),
        ("machines = 5", "machines"),
        ("[machines", "not valid TOML"),
        ("[machine.x]", "machine: unknown key"),
        (LOCAL + "colour = 1", "machines.here.colour: unknown key"),
        (LOCAL + 'name = "x"', "machines.here.name: unknown key"),
        (LOCAL.replace('"/data"', '"data"'), "machines.here.base_dir: must be an absolute path"),
        (LOCAL.replace('"/data"', '"/data/../etc"'), "machines.here.base_dir: "),
        (LOCAL.replace('"/data"', "5"), "machines.here.base_dir: "),
        (LOCAL.replace('"local"', '"ftp"'), "machines.here.transport: "),
        (LOCAL.replace("here", '"-here"'), "machines.-here.name: must be letters"),
        (LOCAL.replace("here", f'"{"x" * 64}"'), "name: must be letters"),
        (LOCAL.replace("here", '"a:b"'), "name: must be letters"),
        (LOCAL + 'host = "x"', "machines.here.host: cannot be combined with"),
        (LOCAL + 'direct_host = "x"', "machines.here.direct_host: cannot be combined with"),
        (SFTP + 'direct_host = "-x"', "machines.far.direct_host: must not be empty, begin with a dash"),
        (LOCAL + "port = 22", "machines.here.port: cannot be combined with"),
        (SFTP.replace('host = "far.example"\n', ""), "machines.far.host: is required"),
        (
            SFTP.replace('"far.example"', '"-oProxyCommand=id"'),
            "machines.far.host: must not be empty, begin with a dash",
        ),
        (SFTP.replace('"far.example"', '""'), "machines.far.host: "),
        (SFTP + 'username = "a b"', "machines.far.username: "),
        (SFTP + "port = 0", "machines.far.port: "),
        (SFTP + "port = 65536", "machines.far.port: "),
        (SFTP + "max_connections = 0", "machines.far.max_connections: "),
        (SFTP + "connect_timeout = 0", "machines.far.connect_timeout: "),
        (SFTP + 'connection = "telnet"', "machines.far.connection: "),
        (SFTP + 'verify = "none"', "machines.far.verify: "),
        (SFTP + 'bandwidth = "fast"', "machines.far.bandwidth: must be bytes per second"),
        (SFTP + "bandwidth = 0", "machines.far.bandwidth: "),
        (SFTP + "bandwidth = true", "machines.far.bandwidth: must be bytes per second"),
        (SFTP + f'bandwidth = "{2**63}"', "machines.far.bandwidth: "),
        (SFTP + f'bandwidth = "{"9" * 5000}GB"', "machines.far.bandwidth: "),
        (SFTP + "max_transfers = 0", "machines.far.max_transfers: "),
        (SFTP + "max_transfers = 1001", "machines.far.max_transfers: "),
        (SFTP + 'archive = "perhaps"', "machines.far.archive: "),
        *(
            (SFTP + f'archive_dir = "{path}"', "machines.far.archive_dir: must be a path below base_dir")
            for path in ("", "/x", "../x", "a/../b", "a//b", "a/")
        ),
        (SFTP + 'stage_poll = ["poll", "{path}"]', "machines.far.stage_poll: needs archive = true"),
        (SFTP + 'archive = true\nstage_poll = ["{path}"]', "machines.far.stage_poll: needs archive = true"),
        (SFTP + 'archive = true\nstage_command = ["stage", "{path}"]', "machines.far.stage_poll: is required"),
    ],
)
def test_one_clear_line(text: str, words: str) -> None:
    assert words in refused(text)


@pytest.mark.parametrize(
    ("given", "rate"),
    [("100", 100), ("200MB/s", 200_000_000), ("1.5Gi", 1_610_612_736), ("1 kB", 1000), ("2TiB/s", 2 * 2**40), (7, 7)],
)
def test_rates(given: object, rate: int) -> None:
    assert parse_rate(given) == rate


@pytest.mark.parametrize("given", ["5i", "", "MB", "-5", "1e6", "5 PB", "1,5MB"])
def test_what_is_no_rate(given: str) -> None:
    with pytest.raises(ValueError, match="bytes per second"):
        parse_rate(given)


@pytest.mark.parametrize(("given", "base_dir"), [("/", "/"), ("/data/", "/data"), ("/data//", "/data")])
def test_base_dirs_have_no_slash_at_the_end(given: str, base_dir: str) -> None:
    assert parse_machines(LOCAL.replace("/data", given), "x")["here"].base_dir == base_dir


def test_another_name_is_an_unknown_machine() -> None:
    machines = parse_machines(LOCAL + SFTP, "machines.toml")
    with pytest.raises(UnknownMachine, match="'nowhere' is not configured; configured: far, here"):
        machines["nowhere"]
    assert "nowhere" not in machines
    assert len(machines) == 2
    with pytest.raises(UnknownMachine, match="none"):
        Machines({})["x"]


def test_rules_name_archives() -> None:
    with_one = parse_machines(LOCAL + "archive = true", "machines.toml")
    assert with_one.archive_for("any", None).name == "here"
    assert list(with_one.with_archives(ArchiveRules("here", {"fire": "here"}))) == ["here"]
    for rules, variable in (
        (ArchiveRules("there"), "DM_ARCHIVE_TO: there"),
        (ArchiveRules(None, {"a": "b"}), "DM_ARCHIVE_GROUPS: b"),
    ):
        with pytest.raises(SettingsError, match=f"{variable} is not a machine with archive = true"):
            with_one.with_archives(rules)
    with pytest.raises(SettingsError):
        parse_machines(LOCAL, "machines.toml").with_archives(ArchiveRules("here"))


def test_reading_the_file(tmp_path: Path) -> None:
    path = tmp_path / "machines.toml"
    with pytest.raises(SettingsError, match="can't be read"):
        load_machines(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match="can't be read"):
        load_machines(path)
    path.write_text(LOCAL)
    assert list(load_machines(path)) == ["here"]
