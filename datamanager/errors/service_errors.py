"""A part of the service itself is away, set wrongly, or wrong."""

from __future__ import annotations

from datamanager.errors.root import DataManagerError


class ServiceError(DataManagerError, code="service_unavailable", retryable=True):
    """A part of the service is unavailable."""


class CatalogueUnavailable(ServiceError, code="catalogue_unavailable"):
    """The catalogue's database does not answer."""


class CatalogueFull(CatalogueUnavailable, code="no_space"):
    """The service's own disk is full, so it can record nothing."""


class OrchestratorUnavailable(ServiceError, code="orchestrator_unavailable"):
    """The Prefect server does not answer, or no mover is online."""


class BrokerUnavailable(ServiceError, code="broker_unavailable"):
    """RabbitMQ does not answer."""


class ServerBusy(ServiceError, code="server_busy"):
    """Too much is under way already."""


class SigningUnavailable(ServiceError, code="signing_unavailable"):
    """The signer of SSH certificates does not answer."""


class SigningFailed(ServiceError, code="signing_failed", retryable=False):
    """The signer of SSH certificates refused, or its certificate is not the one that was asked for."""


class SettingsError(DataManagerError, code="invalid_settings"):
    """A setting or machines.toml is invalid; the message is one line and stops the start."""


class InvalidRules(SettingsError, code="invalid_rules"):
    """The retention rules are invalid; no rule is applied."""


class InternalError(DataManagerError, code="internal"):
    """An internal error."""
