"""What must be right before anything starts: home folder, machines.toml, ports. A wrong one is one clear line."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from pathlib import Path

from datamanager.errors import SettingsError
from datamanager.machines import Machines, load_machines
from datamanager.settings import Settings

OWN_MACHINE = "localhost"

_MACHINES_TOML = """\
# The machines that hold data; `dm up` wrote this file at its first start. It is read at every start.
[machines.{name}]
transport = "local"
base_dir = {base_dir}

# A machine that is reached by SSH. Then: dm machine trust archer2, dm machine check archer2
# [machines.archer2]
# transport = "sftp"
# host = "login.archer2.example"   # or a Host alias of ~/.ssh/config
# username = "vestec"
# identity_file = "~/.ssh/id_ed25519"
# base_dir = "/home/vestec/data"
"""


def make_home(settings: Settings) -> None:
    """Make the home folder, for its owner alone (0700). Raises: SettingsError."""
    home = settings.home
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        if home.stat().st_mode & 0o077:
            home.chmod(0o700)
    except OSError as exc:
        raise SettingsError(f"DM_HOME: {home}: {exc.strerror}") from exc


def lock_home(settings: Settings) -> int:
    """Take the home folder for this process alone; it is free again when the process ends.

    Two embedded Prefect servers must not share one database. Raises: SettingsError when another `dm up` has it.
    """
    handle = os.open(settings.home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise SettingsError(f"DM_HOME: {settings.home} is in use by another dm up") from None
    return handle


def provide_machines(settings: Settings) -> Machines:
    """Read machines.toml; write one for this host where there is none and none was named. Raises: SettingsError."""
    file = settings.machines_file
    if settings.machines is None and not file.exists():
        try:
            _write_machines(file, settings.home / "data")
        except OSError as exc:
            raise SettingsError(f"DM_HOME: {file}: {exc.strerror}") from exc
    return load_machines(file).with_archives(settings.archive_rules)


def check_ports(settings: Settings) -> None:
    """Make sure that nothing listens where we will. Raises: SettingsError, which names the port and its setting."""
    if settings.prefect_api_url is None:
        if settings.prefect_port == settings.port:
            raise SettingsError(f"DM_PREFECT_PORT: {settings.port} is the API's port too (DM_PORT); choose another")
        _check_free("127.0.0.1", settings.prefect_port, "DM_PREFECT_PORT")
    _check_free(settings.host, settings.port, "DM_PORT")


def _check_free(host: str, port: int, setting: str) -> None:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as exc:
        raise SettingsError(f"DM_HOST: {host}: {exc.strerror}") from exc
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the servers do: closed connections don't count
        try:
            probe.bind(address)
        except OSError as exc:
            raise SettingsError(
                f"{setting}: port {port} on {host} can't be used ({exc.strerror}); set {setting} to another one"
            ) from exc


def _write_machines(file: Path, base_dir: Path) -> None:
    base_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    # a JSON string is a TOML string too
    text = _MACHINES_TOML.format(name=OWN_MACHINE, base_dir=json.dumps(str(base_dir), ensure_ascii=False))
    temporary = file.with_name(f".{file.name}.new")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(file)
