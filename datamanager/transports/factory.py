"""From a machine's configuration to its storage: the only place that knows every transport."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from datamanager.errors import AuthenticationFailed, SettingsError
from datamanager.machines import ActsAs, Connection, Machine, Machines, TransportKind
from datamanager.signing.certificate import Person
from datamanager.signing.signer import PersonLogin, Signer
from datamanager.transports.local.storage import LocalStorage
from datamanager.transports.port import Storage
from datamanager.transports.session_limiter import SessionLimiter
from datamanager.transports.sftp.pool import Connector, Known, SftpStorage
from datamanager.transports.ssh.openssh import OpenSshConnector
from datamanager.transports.ssh.openssh_client import ssh_program
from datamanager.transports.ssh.paramiko import ParamikoConnector
from datamanager.transports.ssh.short_transfers import PlainMachines, ShortConnector

SERVICE_TASK = "service"
"""The task in key ids of logins that are not for one task."""
_NO_KEY = Path(os.devnull)


def open_storage(
    machine: Machine,
    *,
    control_dir: Path,
    person: Person | None = None,
    signer: Signer | None = None,
    limiter: SessionLimiter | None = None,
    known: Known | None = None,
    short: PlainMachines | None = None,
) -> Storage:
    """Return the machine's storage; nothing is connected before the first session.

    `control_dir` holds OpenSSH's control sockets: a short path, made here (0700) where it is missing. Who can write
    there can use our connections. A machine with `acts_as = "caller"` is logged in to as the person, by a certificate
    of the signer. `limiter`: the machine's limit where several storages share it. `known`: what was found out of it for
    the same account. `short`: what a person does there is short, and which machines ssh reaches with its defaults: they
    are logged in to sooner.

    Raises: NoLogin; SettingsError when another user can write there, or there is no signer.
    """
    if machine.transport is TransportKind.LOCAL:
        return LocalStorage(machine)
    login = None
    if machine.acts_as is ActsAs.CALLER:
        person = person or Person.service(SERVICE_TASK)
        machine = machine.model_copy(update={"username": person.login_on(machine), "identity_file": None})
        if signer is None:
            raise SettingsError(f'machines.{machine.name}.acts_as: "caller" needs a certificate authority')
        login = PersonLogin(machine, person, signer)
    connection = machine.connection
    if connection is Connection.AUTO:
        connection = Connection.OPENSSH if ssh_program() else Connection.PARAMIKO
    if connection is Connection.PARAMIKO:
        return SftpStorage(machine, ParamikoConnector(machine, login), limiter=limiter, login=login, known=known)
    _make_private(control_dir)
    connector: Connector
    if short is not None and login is not None and machine.connection is Connection.AUTO:
        connector = ShortConnector(machine, control_dir, login, short)
    else:
        connector = OpenSshConnector(machine, control_dir, login)
    return SftpStorage(machine, connector, limiter=limiter, login=login, known=known)


class Storages:
    """The storages of all machines, each opened when it is first needed. Safe to share between threads.

    Machines with `acts_as = "caller"` are used as the service itself, unless the storages are those `of` a person.
    """

    def __init__(self, machines: Machines, control_dir: Path, signer: Signer | None = None) -> None:
        self._machines = machines
        self._signer = signer
        self._person: Person | None = None
        self._shared: Storages | None = None
        self.plain = PlainMachines()
        """Which machines ssh reaches with its defaults alone."""
        self._short = False
        self._limiters: dict[str, SessionLimiter] = {}
        self._known: dict[tuple[str, str], Known] = {}
        self._control_dir = control_dir
        self._open: dict[str, Storage] = {}
        self._lock = threading.Lock()
        self._limiters_lock = threading.Lock()

    def get(self, name: str) -> Storage:
        """Return a machine's storage, the same one every time. Raises: UnknownMachine; as `open_storage`."""
        machine = self._machines[name]
        personal = machine.acts_as is ActsAs.CALLER
        if self._shared is not None and not personal:
            return self._shared.get(name)
        with self._lock:
            if name not in self._open:
                shared = self._shared or self
                self._open[name] = open_storage(
                    machine,
                    control_dir=self._control_dir,
                    person=self._person,
                    signer=self._signer,
                    limiter=shared.limiter_of(machine) if personal else None,
                    known=shared.known_of(machine, self._person) if personal else None,
                    short=shared.plain if self._short else None,
                )
            return self._open[name]

    def of(self, person: Person, *, short: bool = False) -> Storages:
        """Return the storages for a person: those of machines with `acts_as = "caller"` are the person's own, until
        they are closed; all others are these here. `max_connections` counts over all persons. For a person without an
        account `get` raises NoLogin for such machines. `short`: few bytes will move, so what counts is a soon login.
        """
        own = Storages(self._machines, self._control_dir, self._signer)
        own._person, own._shared, own._short = person, self, short
        return own

    @contextmanager
    def acting_as(self, person: Person, *, short: bool = False) -> Iterator[Storages]:
        """Use the storages of a person, who has them no longer than this context; see `of`."""
        own = self.of(person, short=short)
        try:
            yield own
        finally:
            own.close()

    def knock(self, name: str) -> None:
        """Reach a machine that acts as the caller, for nobody: its host key is checked, and the login is refused.

        Raises: MachineUnavailable, HostKeyMismatch.
        """
        nobody = {"acts_as": ActsAs.SHARED, "username": "nobody", "identity_file": _NO_KEY}
        storage = open_storage(self._machines[name].model_copy(update=nobody), control_dir=self._control_dir)
        try:
            with suppress(AuthenticationFailed), storage.session():
                pass
        finally:
            storage.close()

    def limiter_of(self, machine: Machine) -> SessionLimiter:
        """Return the limit that all persons on this machine share."""
        with self._limiters_lock:
            if machine.name not in self._limiters:
                self._limiters[machine.name] = SessionLimiter(machine.name, machine.max_connections)
            return self._limiters[machine.name]

    def known_of(self, machine: Machine, person: Person | None) -> Known:
        """Return what is known of a machine for a person's account. Raises: NoLogin."""
        account = (person or Person.service(SERVICE_TASK)).login_on(machine)
        with self._limiters_lock:
            return self._known.setdefault((machine.name, account), Known(machine.name))

    def close(self) -> None:
        """Close every storage; a later `get` opens it anew. Idempotent."""
        with self._lock:
            storages, self._open = list(self._open.values()), {}
        for storage in storages:
            storage.close()


def _make_private(directory: Path) -> None:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = os.lstat(directory)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise SettingsError(f"{directory}: must be our directory with mode 0700 (it holds SSH control sockets)")
