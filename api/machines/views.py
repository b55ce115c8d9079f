"""What clients see of machines: a probe's finding, the limits in force, their health."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from api.http.problems import title_of
from api.http.responses import view_of
from api.machines.probe import ProbeResult
from datamanager.domain.limits import Limits
from datamanager.errors import DataManagerError, LoginOutput
from datamanager.machines import Machine
from models.machines.health import Health


class MachineErrorView(TypedDict):
    """Why a machine can't be used."""

    code: str
    detail: str


class CircuitView(TypedDict):
    """An open circuit: a machine could not be reached `failures` times in a row, and its transfers wait. `until`: when
    a mover looks next whether it answers again.
    """

    opened: datetime
    failures: int
    until: datetime


class HealthView(TypedDict):
    """Whether a machine's transfers wait: `drained` since when an operator drains it, `circuit` while the machine
    can't be reached; each null where it does not.
    """

    name: str
    drained: datetime | None
    circuit: CircuitView | None


class MachineView(TypedDict):
    """A configured machine and what a live probe of it found. `latency_ms` is one round trip.

    `bandwidth` (bytes per second) and `max_transfers` are the limits in force, null where there is none. Its transfers
    wait while it is `drained` (since when) or its `circuit` is open. `objects` are the ACTIVE ones that lie on it,
    `object_bytes` their sizes, as far as they are known.
    """

    name: str
    transport: str
    host: str | None
    port: int | None
    base_dir: str
    connection: str
    max_connections: int
    verify: str
    archive: bool
    direct: bool
    bandwidth: int | None
    max_transfers: int | None
    drained: datetime | None
    circuit: CircuitView | None
    reachable: bool
    latency_ms: float | None
    free_bytes: int | None
    objects: int
    object_bytes: int
    error: MachineErrorView | None


class LimitsView(TypedDict):
    """A machine's limits in force: bytes per second and transfers at once, null where there is none.

    `changed`: when they were changed while running, null when they are what machines.toml says.
    """

    name: str
    bandwidth: int | None
    max_transfers: int | None
    changed: datetime | None


def machine_view(
    machine: Machine, finding: ProbeResult, limits: Limits, health: Health, active: tuple[int, int] = (0, 0)
) -> MachineView:
    """Show a machine, without login, keys and files of ours; `active`: its ACTIVE objects, and their bytes."""
    error = finding.error
    return view_of(
        MachineView,
        machine,
        bandwidth=limits.bandwidth,
        max_transfers=limits.max_transfers,
        drained=health.drained,
        circuit=health.circuit,
        reachable=error is None,
        latency_ms=None if finding.latency is None else round(finding.latency * 1000, 2),
        free_bytes=finding.free,
        objects=active[0],
        object_bytes=active[1],
        error=None if error is None else {"code": error.code, "detail": _why(machine, error, finding.missing)},
    )


def _why(machine: Machine, error: DataManagerError, missing: Sequence[str]) -> str:
    """Return the sentence of an error, not its detail, which may quote what ssh says of files and logins of ours; but
    for what a login prints, which has to be known to be changed. Keys of machines.toml that name nothing follow."""
    sentence = error.detail if isinstance(error, LoginOutput) else title_of(type(error))
    return "; ".join([sentence, *(f"machines.{machine.name}.{key} does not exist" for key in missing)])
