"""Errors of the service itself: a part of it is away, its settings are wrong, or it has a fault."""

from __future__ import annotations

from datamanager.errors.root import DataManagerError


class ServiceError(DataManagerError):
    """A part of the service itself is away."""

    code = "service_unavailable"
    retryable = True


class CatalogueUnavailable(ServiceError):
    """The catalogue's database does not answer."""

    code = "catalogue_unavailable"


class OrchestratorUnavailable(ServiceError):
    """The Prefect server does not answer, or no mover is online."""

    code = "orchestrator_unavailable"


class BrokerUnavailable(ServiceError):
    """RabbitMQ does not answer."""

    code = "broker_unavailable"


class SettingsError(DataManagerError):
    """A setting or machines.toml is wrong; the message is one clear line and stops the start."""

    code = "invalid_settings"


class InvalidRules(SettingsError):
    """The file with the rules of retention is wrong; nothing is done by it until it is right."""

    code = "invalid_rules"


class InternalError(DataManagerError):
    """A fault of ours."""

    code = "internal"
