"""A client of the REST API, for scripts and other services.

    with Client("http://127.0.0.1:5000") as dm:
        weather = dm.register("archer2", "june.nc", "weather", group="fire")
        copy = dm.copy(weather, "cirrus", "weather/june.nc")

What the service refuses is raised as the error it was there (`datamanager.errors`). Writing calls carry an
`Idempotency-Key`, so one whose connection broke is repeated and still done once.
"""

from datamanager.client.access_client import AccessClient, TokenInfo, WhoamiInfo
from datamanager.client.answers import (
    CircuitInfo,
    ItemCountsInfo,
    ItemInfo,
    MachineHealthInfo,
    MachineInfo,
    MachineLimits,
    ObjectInfo,
    Task,
    TaskError,
    Tree,
)
from datamanager.client.audit_client import AuditClient, AuditFindingInfo, AuditInfo
from datamanager.client.connection import DEFAULT_URL, problem_error
from datamanager.client.rest_client import Client
from datamanager.client.retention_client import RetentionClient, RetentionPlan, RetentionRunInfo

__all__ = [
    "DEFAULT_URL",
    "AccessClient",
    "AuditClient",
    "AuditFindingInfo",
    "AuditInfo",
    "CircuitInfo",
    "Client",
    "ItemCountsInfo",
    "ItemInfo",
    "MachineHealthInfo",
    "MachineInfo",
    "MachineLimits",
    "ObjectInfo",
    "RetentionClient",
    "RetentionPlan",
    "RetentionRunInfo",
    "Task",
    "TaskError",
    "TokenInfo",
    "Tree",
    "WhoamiInfo",
    "problem_error",
]
