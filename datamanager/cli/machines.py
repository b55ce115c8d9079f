"""`dm machine …`: list and check machines, pin host keys, set limits, drain."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Annotated

import paramiko
import typer

from datamanager.cli.options import connected
from datamanager.cli.tables import Listing, tell
from datamanager.client import Client
from datamanager.errors import HostKeyMismatch, SettingsError
from datamanager.machines import Machines, TransportKind, load_machines
from datamanager.settings import load_settings
from datamanager.signing.builtin_ca import BuiltinCa, create_key, sshd_lines
from datamanager.signing.certificate import Person
from datamanager.signing.configured import signer_of
from datamanager.signing.revocation import revocation_list
from datamanager.transports.factory import open_storage
from datamanager.transports.ssh.hostkeys import KnownHosts, known_hosts_name
from datamanager.transports.ssh.keyscan import fetch_host_keys, pin

DEFAULT_FILE = Path("~/.ssh/known_hosts")
CA_FILE, REVOKED_FILE = "/etc/ssh/dm_ca.pub", "/etc/ssh/dm_revoked.krl"
"""Where the authority's public half and the revocation list may lie on machines."""

app = typer.Typer(help="Manage the machines of machines.toml.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(metavar="NAME", help="The machine's name in machines.toml.")]


@app.command("list")
def list_machines() -> None:
    """List the configured machines."""
    table = Listing("name", "transport", "where", "base_dir", "verify")
    for machine in _machines().values():
        where = "this host" if machine.host is None else machine.host
        if machine.port is not None:
            where = f"{where}:{machine.port}"
        table.add(machine.name, machine.transport.value, where, machine.base_dir, machine.verify.value)
    table.print()


@app.command()
def check(
    name: Name,
    login: Annotated[
        str | None,
        typer.Option(metavar="ACCOUNT", help='With acts_as = "caller": the account; default: service_login.'),
    ] = None,
) -> None:
    """Log in to a machine; show round-trip time and free space."""
    settings = load_settings()
    machine = _machines()[name]
    person = Person.service("check") if login is None else Person(login, "check", login)
    storage = open_storage(machine, control_dir=settings.home / "run", person=person, signer=signer_of(settings))
    try:
        begun = time.monotonic()
        with storage.session() as session:
            connected = time.monotonic()
            session.stat(machine.base_dir)
            answered = time.monotonic()
            free = session.free_space(machine.base_dir)
    finally:
        storage.close()
    tell(f"{name}: reachable, base_dir {machine.base_dir} exists")
    tell(f"  login       {(connected - begun) * 1000:.0f} ms")
    tell(f"  round trip  {(answered - connected) * 1000:.1f} ms")
    tell(f"  free space  {'unknown' if free is None else f'{free / 1e9:,.1f} GB'}")


@app.command()
def trust(
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
) -> None:
    """Show the host keys of a machine and pin them in its known_hosts file.

    Compare the fingerprints with those that the machine's operators publish, or with the output of
    `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` on the machine itself.
    """
    machine = _machines()[name]
    if machine.transport is not TransportKind.SFTP:
        raise SettingsError(f'machine {name} has transport = "{machine.transport}" and therefore no host key')
    file = (machine.known_hosts or DEFAULT_FILE).expanduser()
    keys = fetch_host_keys(machine)
    host = known_hosts_name(machine)
    tell(f"{name} ({host}) presents:")
    for key in keys:
        tell(f"  {key.get_name():<20} {key.fingerprint}")
    known, other = _compare(KnownHosts(machine), keys)
    if other:
        raise HostKeyMismatch(_warning(name, host, file, other))
    if known:
        tell(f"Already pinned: {', '.join(key.get_name() for key in known)}. Nothing was changed.")
        return
    if not yes and not typer.confirm(f"Are these the host keys of {name}? Pin them in {file}?"):
        tell("Nothing was pinned.")
        raise typer.Exit(1)
    for key in keys:
        pin(machine, key, file)
    for key in keys:
        KnownHosts(machine).check(key)  # another line of the file may revoke it
    tell(f"Pinned in {file}.")


@app.command()
def ca(
    krl: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a revocation list for RevokedKeys.")] = None,
    revoke: Annotated[list[int] | None, typer.Option(metavar="SERIAL", help="A certificate to revoke.")] = None,
    revoke_all: Annotated[bool, typer.Option("--revoke-all", help="Revoke all certificates of the authority.")] = False,
) -> None:
    """Show what machines with acts_as = "caller" need to accept our certificates. Make the authority's key if needed.

    Certificates are valid for minutes, so the revocation list names only what is given now. Serials are in the log of
    the machine's sshd.
    """
    settings = load_settings()
    signer = signer_of(settings)
    if signer is None:
        settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        create_key(settings.ssh_ca_file)
        signer = BuiltinCa(settings.ssh_ca_file)
    if (revoke or revoke_all) and krl is None:
        raise SettingsError("--krl: is required with --revoke and --revoke-all")
    if krl is not None:
        krl.write_bytes(revocation_list(signer.public_line, revoke or [], whole=revoke_all))
        tell(f"Written: {krl}. Copy it to {REVOKED_FILE} on the machines.")
        return
    tell(f'# {CA_FILE} on each machine with acts_as = "caller":')
    tell(signer.public_line)
    tell(f"# its sshd_config (without {REVOKED_FILE}, which dm machine ca --krl writes, sshd accepts no key at all):")
    for line in sshd_lines(CA_FILE, REVOKED_FILE).splitlines():
        tell(line)


@app.command()
def limit(
    name: Name,
    bandwidth: Annotated[str | None, typer.Option(metavar="RATE", help="Bandwidth such as 200MB/s, or none.")] = None,
    transfers: Annotated[str | None, typer.Option(metavar="COUNT", help="Transfers at the same time, or none.")] = None,
    reset: Annotated[bool, typer.Option("--reset", help="Restore the limits of machines.toml.")] = False,
) -> None:
    """Change the limits of a machine while the service runs; they apply to running transfers too.

    They take precedence over machines.toml until --reset.
    """
    given = {"bandwidth": bandwidth, "max_transfers": transfers}
    changes = {key: None if value == "none" else value for key, value in given.items() if value is not None}
    if reset and changes:
        raise SettingsError("--reset: cannot be combined with a limit")
    with connected(Client) as dm:
        found = dm.reset_machine(name) if reset else dm.limit_machine(name, **changes)
    rate = "any number of" if found.bandwidth is None else f"{found.bandwidth:,}"
    count = "any number of" if found.max_transfers is None else found.max_transfers
    tell(f"{name}: {rate} bytes per second, {count} transfers at once")


@app.command()
def drain(name: Name) -> None:
    """Start no more transfers of a machine; they wait in the queue. Running transfers continue.

    Draining lasts until `dm machine undrain`, also over restarts.
    """
    with connected(Client) as dm:
        found = dm.drain_machine(name)
    tell(f"{name}: drained since {found.drained:%Y-%m-%d %H:%M:%S %Z}; its transfers wait in the queue")


@app.command()
def undrain(name: Name) -> None:
    """Start the transfers of a drained machine again."""
    with connected(Client) as dm:
        found = dm.undrain_machine(name)
    waits = "" if found.circuit is None else ", but it can't be reached: its transfers wait in the queue"
    tell(f"{name}: not drained{waits}")


def _compare(pinned: KnownHosts, keys: list[paramiko.PKey]) -> tuple[list[paramiko.PKey], list[paramiko.PKey]]:
    """Return the presented keys that are pinned, and those that contradict pinned keys."""
    known, unknown = [], []
    for key in keys:
        try:
            pinned.check(key)
            known.append(key)
        except HostKeyMismatch:
            unknown.append(key)
    types = {"ssh-rsa" if name.startswith("rsa-") else name for name in pinned.key_algorithms()}
    # another key of a type that is pinned, or none of the pinned ones at all
    other = [key for key in unknown if key.get_name() in types] if known else unknown if types else []
    return known, other


def _warning(name: str, host: str, file: Path, other: list[paramiko.PKey]) -> str:
    types = ", ".join(key.get_name() for key in other)
    quoted = f"{shlex.quote(host)} -f {shlex.quote(str(file))}"
    return (
        f"REFUSED: {name} presents another host key ({types}) than the pinned one. Either its operators changed it, "
        f"or the connection is intercepted. Ask the operators. To show the pinned key: ssh-keygen -F {quoted}; "
        f"to remove it: ssh-keygen -R {quoted}"
    )


def _machines() -> Machines:
    return load_machines(load_settings().machines_file)
