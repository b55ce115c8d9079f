"""machines.toml: the machines that hold data, typed, checked and read once.

Keys that a machine may have are the fields below; an unknown key or a bad value stops the start with one line that
names it.
"""

from __future__ import annotations

import ipaddress
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from datamanager.errors import InvalidRequest, SettingsError, UnknownMachine

MACHINE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_RATE = re.compile(r"([0-9]{1,19})(?:\s*B)?(?:/s)?|([0-9]{1,19}(?:\.[0-9]{1,9})?)\s*([kMGT]i?)B?/?s?")
BYTE_UNITS = {"": 1} | {
    f"{letter}{i}": (1024 if i else 1000) ** power
    for power, letters in enumerate(("kK", "M", "G", "T", "P"), 1)
    for letter in letters
    for i in ("", "i")
}
"""How many bytes a unit of sizes and rates stands for."""


class TransportKind(StrEnum):
    """How a machine's storage is reached."""

    LOCAL = "local"
    """The file system of the host where the mover runs."""
    SFTP = "sftp"
    """SFTP over SSH."""


class Connection(StrEnum):
    """Which SSH implementation carries the SFTP channel."""

    AUTO = "auto"
    """The system's OpenSSH client where there is one, else paramiko."""
    OPENSSH = "openssh"
    PARAMIKO = "paramiko"


class ActsAs(StrEnum):
    """Whose account the mover logs in to."""

    SHARED = "shared"
    """That of `username`, for everybody."""
    CALLER = "caller"
    """That of the person for whom it works, with a short-lived certificate."""


class VerifyPolicy(StrEnum):
    """What is proved before a file is published."""

    SHA256 = "sha256"
    """One hash while streaming, one of the other side's storage; never a fallback."""
    SIZE = "size"
    """The sizes are equal."""


def parse_rate(value: object) -> object:
    """Read a bandwidth: bytes per second as a number, or with a unit such as `200MB/s` or `1.5Gi`."""
    if isinstance(value, str) and (match := _RATE.fullmatch(value)) is not None:
        return int(match[1]) if match[1] else int(Decimal(match[2]) * BYTE_UNITS[match[3]])
    if isinstance(value, str | bool | float):
        raise ValueError('must be bytes per second, as a number or like "200MB/s"')
    return value


Rate = Annotated[int, Field(gt=0, le=2**63 - 1), BeforeValidator(parse_rate, json_schema_input_type=int | str)]
"""Bytes per second; in a request or file also as text with a unit."""
MAX_TRANSFERS = 1000
"""The most that `max_transfers` may be."""


class Machine(BaseModel):
    """One machine: where its data lies and how to reach it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    transport: TransportKind
    base_dir: str
    """Absolute directory on the machine; every path of a request lies below it."""
    host: str | None = None
    """Host name, address, or a Host alias of ~/.ssh/config (with `connection = openssh`)."""
    port: Annotated[int, Field(ge=1, le=65535)] | None = None
    username: str | None = None
    identity_file: Path | None = None
    known_hosts: Path | None = None
    """The known_hosts file; default ~/.ssh/known_hosts and /etc/ssh/ssh_known_hosts. Host keys are always checked."""
    connection: Connection = Connection.AUTO
    max_connections: Annotated[int, Field(ge=1, le=64)] = 8
    connect_timeout: Annotated[float, Field(gt=0, le=600)] = 10.0
    """Seconds until an unreachable machine is called unavailable."""
    stall_timeout: Annotated[float, Field(gt=0, le=3600)] = 60.0
    """Seconds without a byte until a connection is called dead."""
    archive: bool = False
    """It keeps bundles of archived objects."""
    archive_dir: str = "bundles"
    """The directory below `base_dir` where its bundles are."""
    stage_command: tuple[str, ...] = ()
    """The words of a program on the archive that asks for a bundle to be brought from tape; `{path}` is the bundle."""
    stage_poll: tuple[str, ...] = ()
    """The words of one that ends with 0 when the bundle can be read; absent: it always can."""
    stage_every: Annotated[float, Field(ge=1, le=86400)] = 60.0
    """Seconds between two such looks."""
    audit_prefixes: tuple[str, ...] = ()
    """Directories below `base_dir` ("." is that itself) where every file should have an object, subdirectories
    included: what an audit reports as DARK otherwise. Absent: the directories that hold objects, without those below.
    """
    direct: bool = False
    """May send to, and receive from, other machines that say so too, without a relay."""
    direct_host: str | None = None
    """The name or address by which other machines reach this one; absent: `host`."""
    forward_agent: bool = False
    """As the source of a direct transfer it may use our SSH agent; else it uses a key of its own."""
    acts_as: ActsAs = ActsAs.SHARED
    allow_programs: bool = False
    """With `acts_as = "caller"`: certificates allow programs, not only SFTP."""
    seen_from: tuple[str, ...] = ()
    """With `acts_as = "caller"`: from which addresses or networks the machine sees us; absent: those of our route."""
    direct_from: tuple[str, ...] = ()
    """From which addresses or networks other machines see this one, for certificates of direct transfers; absent: the
    addresses of `direct_host`."""
    service_login: str | None = None
    """With `acts_as = "caller"`: the account for the service's own work; absent: there is none of it."""
    verify: VerifyPolicy = VerifyPolicy.SHA256
    bandwidth: Rate | None = None
    """Bytes per second, all transfers of this machine together; absent: no limit."""
    max_transfers: Annotated[int, Field(ge=1, le=MAX_TRANSFERS)] | None = None
    """Transfers from or to this machine that run at once, over all movers; absent: no limit."""

    @field_validator("name")
    @classmethod
    def _name_is_plain(cls, value: str) -> str:
        if not MACHINE_NAME.fullmatch(value):
            raise ValueError(
                "must be letters, digits, dot, dash or underscore, at most 63, starting with a letter or digit"
            )
        return value

    @field_validator("base_dir")
    @classmethod
    def _base_dir_is_absolute(cls, value: str) -> str:
        if not value.startswith("/") or "\0" in value or ".." in value.split("/"):
            raise ValueError("must be an absolute path without '..'")
        return value.rstrip("/") or "/"

    @field_validator("archive_dir")
    @classmethod
    def _archive_dir_is_below(cls, value: str) -> str:
        if not _is_below(value):
            raise ValueError("must be a path below base_dir, without '.' and '..'")
        return value

    @field_validator("audit_prefixes")
    @classmethod
    def _prefixes_are_below(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for prefix in value:
            if prefix != "." and not _is_below(prefix.rstrip("/")):
                raise ValueError(f'{prefix!r} must be a path below base_dir without "." and "..", or "." for all of it')
        return tuple("" if prefix == "." else prefix.rstrip("/") for prefix in value)

    @field_validator("host", "direct_host", "username", "service_login")
    @classmethod
    def _no_option_in_disguise(cls, value: str | None) -> str | None:
        # a value that begins with a dash would be read by ssh as an option
        if value is not None and (not value or value.startswith("-") or re.search(r"[\s\0]", value)):
            raise ValueError("must not be empty, begin with a dash or contain blanks")
        return value

    @field_validator("seen_from", "direct_from")
    @classmethod
    def _networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(str(ipaddress.ip_network(one)) for one in value)

    @field_validator("identity_file", "known_hosts")
    @classmethod
    def _expand_home(cls, value: Path | None) -> Path | None:
        return None if value is None else value.expanduser()

    @model_validator(mode="after")
    def _staging_can_work(self) -> Self:
        for key in ("stage_command", "stage_poll"):
            words = getattr(self, key)
            if words and not (self.archive and any("{path}" in word for word in words[1:])):
                raise ValueError(f'{key}: needs archive = true, and words such as ["stage", "{{path}}"]')
        if self.stage_command and not self.stage_poll:
            raise ValueError("stage_poll: is required with stage_command")
        return self

    @model_validator(mode="after")
    def _keys_fit_the_transport(self) -> Self:
        if self.transport is TransportKind.SFTP and self.host is None:
            raise ValueError('host: is required with transport = "sftp"')
        if self.transport is TransportKind.LOCAL:
            if self.acts_as is ActsAs.CALLER:
                raise ValueError('acts_as: "caller" cannot be combined with transport = "local"')
            for key in ("host", "direct_host", "port", "username", "identity_file", "known_hosts"):
                if getattr(self, key) is not None:
                    raise ValueError(f'{key}: cannot be combined with transport = "local"')
        return self

    @property
    def runs_programs(self) -> bool:
        """Whether our logins may run programs there, if there is a shell."""
        return self.acts_as is ActsAs.SHARED or self.allow_programs


Reach = tuple[frozenset[str], ...]
"""Sets of directories below a `base_dir`; a path must be in one of each set."""


class MachineWithin(Machine):
    """A machine as somebody uses it whose scopes name directories: links do not lead out of these either."""

    reach: Reach


def reaches(machine: Machine, path: str) -> bool:
    """Say whether links may lead to a path below `base_dir` (resolved, "" for that itself)."""
    reach = machine.reach if isinstance(machine, MachineWithin) else ()
    return all(any(_is_in(path, directory) for directory in some) for some in reach)


def within(machine: Machine, reach: Reach) -> Machine:
    """Return a machine as somebody uses it who reaches no more of it."""
    return MachineWithin.model_construct(**dict(machine), reach=reach) if reach else machine


def missing_files(machine: Machine) -> dict[str, str]:
    """Return which keys of a machine name what is not there on this host, each with a line that says so."""
    named = {"identity_file": machine.identity_file, "known_hosts": machine.known_hosts}
    if machine.transport is TransportKind.LOCAL:
        named["base_dir"] = Path(machine.base_dir)
    return {
        key: f"machines.{machine.name}.{key}: {path} does not exist"
        for key, path in named.items()
        if path is not None and not path.exists()
    }


def _is_in(path: str, directory: str) -> bool:
    return not directory or path == directory or path.startswith(f"{directory}/")


def _is_below(path: str) -> bool:
    return "\0" not in path and not {"", ".", ".."} & set(path.split("/"))


@dataclass(frozen=True, slots=True)
class ArchiveRules:
    """Which archive machine is meant where a request names none: the group's own, else the default."""

    default: str | None = None
    of_group: Mapping[str, str] = field(default_factory=dict)


NO_RULES = ArchiveRules()


class Machines(Mapping[str, Machine]):
    """The configured machines by name; looking up another name raises UnknownMachine.

    Raises: SettingsError when `archives` names a machine that keeps no bundles.
    """

    def __init__(self, machines: Mapping[str, Machine], archives: ArchiveRules = NO_RULES) -> None:
        self._machines = dict(machines)
        self._archives = archives
        named = {"DM_ARCHIVE_TO": [archives.default], "DM_ARCHIVE_GROUPS": archives.of_group.values()}
        for variable, names in named.items():
            for name in names:
                if name is not None and not (name in self and self[name].archive):
                    raise SettingsError(f"{variable}: {name} is not a machine with archive = true")

    @property
    def of_callers(self) -> list[str]:
        """The names of those that act as the caller."""
        return [name for name, machine in self._machines.items() if machine.acts_as is ActsAs.CALLER]

    def with_archives(self, rules: ArchiveRules) -> Machines:
        """Return these machines under other rules. Raises: SettingsError."""
        return Machines(self._machines, rules)

    def archive_for(self, group: str, wanted: str | None) -> Machine:
        """Return the archive machine for an object of `group`: the one that is wanted, else as the rules say, else the
        only one that there is.

        Raises: UnknownMachine; InvalidRequest, which names the field, when it is no archive or nothing decides.
        """
        name = wanted or self._archives.of_group.get(group) or self._archives.default
        if name is not None:
            if not self[name].archive:
                raise _no_archive(f"{name} is not an archive; machines.toml must set archive = true")
            return self[name]
        archives = [machine for machine in self.values() if machine.archive]
        if len(archives) != 1:
            names = ", ".join(machine.name for machine in archives)
            raise _no_archive(f"must be one of {names}" if names else "no machine of machines.toml is an archive")
        return archives[0]

    def __getitem__(self, name: str) -> Machine:
        try:
            return self._machines[name]
        except KeyError:
            raise UnknownMachine(name, list(self._machines)) from None

    def __contains__(self, name: object) -> bool:
        return name in self._machines

    def __iter__(self) -> Iterator[str]:
        return iter(self._machines)

    def __len__(self) -> int:
        return len(self._machines)


def _no_archive(what: str) -> InvalidRequest:
    return InvalidRequest(f"archive_to: {what}", {"archive_to": what})


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")
    machines: dict[str, dict[str, Any]] = Field(default_factory=dict)
    version: Literal[1] = 1


def parse_machines(text: str, origin: str) -> Machines:
    """Read the text of a machines.toml; `origin` names it in errors.

    Raises: SettingsError with one line that names the machine, the key and what would be right.
    """
    try:
        file = _File.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as exc:
        raise SettingsError(f"{origin}: not valid TOML: {exc}") from exc
    except ValidationError as exc:
        raise SettingsError(f"{origin}: {describe(exc)}") from exc
    machines: dict[str, Machine] = {}
    for name, table in file.machines.items():
        if "name" in table:
            raise SettingsError(f"{origin}: machines.{name}.name: unknown key")
        try:
            machines[name] = Machine.model_validate({"name": name, **table})
        except ValidationError as exc:
            raise SettingsError(f"{origin}: machines.{name}.{describe(exc)}") from exc
    if not machines:
        raise SettingsError(f"{origin}: no machine is configured; add a table such as [machines.localhost]")
    return Machines(machines)


def load_machines(path: Path) -> Machines:
    """Read machines.toml. Raises: SettingsError when it can't be read or is wrong."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise SettingsError(f"{path}: can't be read: {exc}") from exc
    return parse_machines(text, str(path))


def describe(error: ValidationError) -> str:
    """Say a pydantic error in one line: `key: what is wrong`, the first one when there are several."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"{where}: unknown key"
    what = first["msg"].removeprefix("Value error, ")
    return f"{where}: {what}" if where else what
