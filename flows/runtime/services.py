"""What flows need from the process that runs them. The mover provides it; nothing here is made at import."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from uuid import UUID

from pydantic import SecretStr

from datamanager.engine.control import Control
from datamanager.engine.throttle import Throttles
from datamanager.errors import InternalError
from datamanager.identity.quotas import NO_QUOTAS, Quotas
from datamanager.identity.roles import Roles, RolesFile
from datamanager.machines import Machines
from datamanager.settings import Settings
from datamanager.sources.network.egress_guard import EgressGuard
from datamanager.sources.network.host_limits import HostLimits
from datamanager.transports.factory import Storages
from models.database import Database
from models.tables import Transfer
from models.transfers.queue import TransferLease


@dataclass(slots=True)
class SharedGroup:
    """Transfers that share a flow run, as a mover took them; `control` stops them all."""

    taken: Sequence[tuple[TransferLease, Transfer]]
    control: Control = field(default_factory=Control)
    begun: bool = False
    """Its run has begun: it can't begin once more."""


@dataclass(frozen=True)
class Services:
    """The mover's parts, shared by all its runs."""

    settings: Settings
    machines: Machines
    database: Database
    storages: Storages
    guard: EgressGuard
    owner: str
    """The mover's name on leases."""
    notify: Callable[[str], None]
    """Notify local listeners (the API) with a message."""
    quotas: Quotas = NO_QUOTAS
    credentials: Mapping[str, SecretStr] = field(default_factory=dict, repr=False)
    """Stored credentials of this mover's environment; see `datamanager.settings.load_credentials`."""
    throttles: Throttles = field(default_factory=Throttles)
    """One bucket a machine: what this mover's transfers may use of its bandwidth."""
    roles: RolesFile = field(default_factory=RolesFile)
    """What the grants of transfers are asked again by."""
    hosts: HostLimits = field(default_factory=HostLimits)
    """How many connections external servers allow to this mover."""
    running: dict[TransferLease, Control] = field(default_factory=dict)
    """What this mover works on; its heartbeat renews these leases and stops what was lost."""
    by_run: dict[UUID, TransferLease] = field(default_factory=dict)
    """Which flow run works under which lease, from before it begins until it has ended. Another run can't get at it."""
    acting: dict[TransferLease, Storages] = field(default_factory=dict)
    """The storages of persons for whom transfers were taken whose runs have not begun yet."""
    shared: dict[UUID, SharedGroup] = field(default_factory=dict)
    """The transfers that share a flow run, by flow run, from before it begins until it has ended."""
    maintenance: dict[UUID, Control] = field(default_factory=dict)
    """What stops this mover's runs without a transfer (maintenance); their leases are renewed with its
    heartbeat."""

    @property
    def in_force(self) -> tuple[Roles, Collection[str]]:
        """What grants that waited are asked again by: the roles, and the service tokens of users of the broker."""
        return self.roles.current(), self.settings.amqp_tokens.values()


_services: ContextVar[Services] = ContextVar("services")


@contextmanager
def provided(services: Services) -> Iterator[None]:
    """Provide `services` to the flows that are run inside."""
    token = _services.set(services)
    try:
        yield
    finally:
        _services.reset(token)


def services() -> Services:
    """Return what the mover provides. Raises: InternalError outside a mover."""
    try:
        return _services.get()
    except LookupError:
        raise InternalError("this flow runs in a Data Manager mover only (`dm mover`)") from None
