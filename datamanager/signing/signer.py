"""The port of those who sign, and what a connection logs in with: a key in memory and its certificate."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from datamanager.errors import MachineUnavailable
from datamanager.machines import Machine
from datamanager.signing.certificate import VALIDITY, Certificate, CertificateRequest, Person, request_for

_log = logging.getLogger(__name__)


class Signer(Protocol):
    """Signs certificates. Safe to share between threads."""

    def sign(self, request: CertificateRequest) -> Certificate:
        """Return a certificate that says what was asked for, no more.

        Raises: SigningUnavailable, SigningFailed; SettingsError when the signer's own key or token can't be used.
        """

    @property
    def public_line(self) -> str:
        """The authority's public half, as a line of OpenSSH. Raises: as `sign`."""


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class PersonLogin:
    """Logs in to one machine as a person. Safe to share between threads."""

    machine: Machine
    person: Person
    signer: Signer
    validity: timedelta = VALIDITY
    clock: Callable[[], datetime] = _now

    @property
    def account(self) -> str:
        """The account's name. Raises: NoLogin."""
        return self.person.login_on(self.machine)

    def make(self) -> tuple[Ed25519PrivateKey, Certificate]:
        """Return a new key, held in memory only, and its certificate: for one connection.

        Raises: as `Signer.sign`; NoLogin; MachineUnavailable when our own address towards the machine can't be told.
        """
        return self._made(self.machine.seen_from or (_own_address(self.machine),))

    def make_for(self, source: Machine, command: str) -> tuple[Ed25519PrivateKey, Certificate]:
        """Return a new key and its certificate for one connection from `source` that runs `command` and nothing else.

        Raises: as `make`; MachineUnavailable when the source's address can't be told.
        """
        return self._made(source.direct_from or _addresses(source), command)

    def _made(self, addresses: tuple[str, ...], command: str | None = None) -> tuple[Ed25519PrivateKey, Certificate]:
        key, now = Ed25519PrivateKey.generate(), self.clock()
        asked = request_for(
            self.person, self.machine, key.public_key(), addresses, now=now, validity=self.validity, command=command
        )
        certificate = self.signer.sign(asked)
        _log.info("%s: certificate %d is for %s", self.machine.name, certificate.serial, certificate.key_id)
        return key, certificate


def _addresses(machine: Machine) -> tuple[str, ...]:
    """Return the addresses by which other machines reach this one."""
    try:
        found = socket.getaddrinfo(machine.direct_host or machine.host, None, type=socket.SOCK_STREAM)
    except OSError as exc:
        raise MachineUnavailable(f"{machine.name}: its address can't be told, set direct_from: {exc}") from exc
    return tuple(dict.fromkeys(str(one[4][0]) for one in found))


def _own_address(machine: Machine) -> str:
    """Return the address from which packets to the machine leave; nothing is sent."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            machine.host, machine.port or 22, type=socket.SOCK_DGRAM
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(address)
            return str(probe.getsockname()[0])
    except OSError as exc:
        raise MachineUnavailable(f"{machine.name}: our address can't be told, set seen_from: {exc}") from exc
