"""What a certificate for one connection says (OpenSSH's PROTOCOL.certkeys), and the check that it says no more."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Self
from urllib.parse import quote

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization.ssh import SSHCertificate, SSHCertificateType

from datamanager.errors import InvalidRequest, NoLogin, SigningFailed
from datamanager.identity.grant import Grant
from datamanager.machines import Machine

VALIDITY, LEEWAY = timedelta(minutes=5), timedelta(minutes=1)
"""How long a certificate is valid from now on, and how far clocks may differ."""
SFTP_ONLY = "internal-sftp"
SERVICE = "data-manager"
"""The name in key ids of work that no person has requested."""
_PRINCIPAL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
_ID_PART = re.compile(r"[!-~]{1,128}")
_MOST_NAME = 128


@dataclass(frozen=True, slots=True)
class Person:
    """For whom we log in: the account's name on the machines, the task, and the person's name for logs.

    Raises: InvalidRequest when one of them has other characters than it may, or the account is root's.
    """

    principal: str | None
    """None: no account of theirs is known."""
    task: str
    name: str
    is_service: bool = False
    """It is nobody's work: each machine's `service_login` is the account."""

    @classmethod
    def service(cls, task: str) -> Self:
        """Return the service itself, for work that no person has requested."""
        return cls(None, task, SERVICE, is_service=True)

    @classmethod
    def of(cls, grant: Grant, task: str) -> Self:
        """Return the person of a grant. Raises: InvalidRequest when their account can't be used for logins."""
        return cls(grant.principal, task, quote(grant.person, safe="!#$&'()*+,/:;=?@[]")[:_MOST_NAME])

    def login_on(self, machine: Machine) -> str:
        """Return the account on a machine that acts as the caller. Raises: NoLogin."""
        login = machine.service_login if self.is_service else self.principal
        if login is None:
            whose = "service_login is not set for work" if self.is_service else f"no login of {self.name} is known"
            raise NoLogin(f"{machine.name} is used with the login of who asks: {whose}")
        return login

    def __post_init__(self) -> None:
        if self.principal is not None and not is_principal(self.principal):
            raise InvalidRequest("the person's account can't be used for a login", {"principal": "not allowed"})
        for key in ("task", "name"):
            if not _ID_PART.fullmatch(getattr(self, key)):
                raise InvalidRequest(f"{key}: must be 1 to 128 printable ASCII characters", {key: "not allowed"})


def is_principal(name: str) -> bool:
    """Say whether a certificate may be made for an account of this name."""
    return _PRINCIPAL.fullmatch(name) is not None and name != "root"


@dataclass(frozen=True, slots=True)
class CertificateRequest:
    """What a signer is asked for. `source_addresses` are addresses or networks in CIDR form; no forwarding, no terminal
    and no X11 is ever asked for.
    """

    public_key: Ed25519PublicKey
    principal: str
    key_id: str
    source_addresses: tuple[str, ...]
    valid_after: datetime
    valid_before: datetime
    force_command: str | None = SFTP_ONLY
    serial: int = field(default_factory=lambda: secrets.randbits(63) | 1)

    @property
    def critical_options(self) -> dict[str, str]:
        """The options that a server must understand and enforce."""
        options = {"source-address": ",".join(self.source_addresses)}
        return options if self.force_command is None else {"force-command": self.force_command} | options

    @property
    def public_line(self) -> str:
        """The public key as a line of OpenSSH."""
        raw = self.public_key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
        return raw.decode("ascii")


@dataclass(frozen=True, slots=True)
class Certificate:
    """A signed certificate: a line of OpenSSH, public. The serial is the signer's."""

    line: str
    serial: int
    key_id: str
    valid_before: datetime


def request_for(
    person: Person,
    machine: Machine,
    public_key: Ed25519PublicKey,
    source_addresses: tuple[str, ...],
    *,
    now: datetime,
    validity: timedelta = VALIDITY,
    command: str | None = None,
) -> CertificateRequest:
    """Return the request for one connection of a person to a machine that begins at `now`. `command`: the only one that
    it may run, instead of what the machine allows. Raises: NoLogin.
    """
    return CertificateRequest(
        public_key,
        person.login_on(machine),
        f"dm:{person.task}:{person.name}",
        source_addresses,
        now - LEEWAY,
        now + validity,
        command or (None if machine.allow_programs else SFTP_ONLY),
    )


def checked(line: str, request: CertificateRequest) -> Certificate:
    """Return the certificate in `line`. Raises: SigningFailed when it is not what was asked for, or says more."""
    try:
        found = serialization.load_ssh_public_identity(line.strip().encode("ascii"))
    except (ValueError, UnicodeEncodeError) as exc:
        raise SigningFailed("the signer's answer is no SSH certificate") from exc
    if not isinstance(found, SSHCertificate):
        raise SigningFailed("the signer's answer is a key without a certificate")
    own = request.public_key.public_bytes_raw()
    key = found.public_key()
    options = {name.decode(): value.decode() for name, value in found.critical_options.items()}
    as_asked = {
        "public key": isinstance(key, Ed25519PublicKey) and key.public_bytes_raw() == own,
        "type": found.type is SSHCertificateType.USER,
        "principal": list(found.valid_principals) == [request.principal.encode()],
        "key id": found.key_id == request.key_id.encode(),
        "critical options": options == request.critical_options,
        "extensions": not found.extensions,
        "validity": found.valid_before <= (request.valid_before + LEEWAY).timestamp(),
    }
    wrong = [name for name, right in as_asked.items() if not right]
    if wrong:
        raise SigningFailed(f"the signer's certificate differs from the request: {', '.join(wrong)}")
    return Certificate(line.strip(), found.serial, request.key_id, request.valid_before)
