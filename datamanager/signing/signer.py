"""The port of those who sign, and what a connection logs in with: a key in memory and its certificate."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from datamanager.errors import MachineUnavailable
from datamanager.machines import Machine
from datamanager.signing.certificate import Certificate, CertificateRequest, Person, request_for

_log = logging.getLogger(__name__)


class Signer(Protocol):
    """Signs certificates. Safe to share between threads."""

    def sign(self, request: CertificateRequest) -> Certificate:
        """Return a certificate that says what was asked for, no more.

        Raises: SigningUnavailable, SigningFailed; SettingsError when the signer's own key or token can't be used.
        """


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class PersonLogin:
    """Logs in to one machine as a person. Safe to share between threads."""

    machine: Machine
    person: Person
    signer: Signer
    clock: Callable[[], datetime] = _now

    def make(self) -> tuple[Ed25519PrivateKey, Certificate]:
        """Return a new key, held in memory only, and its certificate: for one connection.

        Raises: as `Signer.sign`; MachineUnavailable when our own address towards the machine can't be told.
        """
        key = Ed25519PrivateKey.generate()
        addresses = self.machine.seen_from or (_own_address(self.machine),)
        programs = self.machine.allow_programs
        now = self.clock()
        certificate = self.signer.sign(
            request_for(self.person, key.public_key(), addresses, programs=programs, now=now)
        )
        _log.info("%s: certificate %d is for %s", self.machine.name, certificate.serial, certificate.key_id)
        return key, certificate


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
