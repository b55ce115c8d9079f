"""Errors of the service itself: a part of it is away, its settings are wrong, or it has a fault."""

from __future__ import annotations

from datamanager.errors.root import DataManagerError


class ServiceError(DataManagerError):
    """A part of the service is unavailable."""

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
    """A setting or machines.toml is invalid; the message is one line and stops the start."""

    code = "invalid_settings"


class InvalidRules(SettingsError):
    """The retention rules are invalid; no rule is applied."""

    code = "invalid_rules"


class InternalError(DataManagerError):
    """An internal error."""

    code = "internal"
