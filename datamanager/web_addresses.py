"""Addresses of services in settings, checked when they are read. Those that are shown have no password."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator, SecretStr

from datamanager.listening import is_loopback


def _split(value: str, example: str) -> SplitResult:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        raise ValueError(f"must be like {example}, without user and password")
    return parts


def read_web_address(value: str) -> str:
    """Return an address without the slash at its end. Raises: ValueError."""
    parts = _split(value, "https://data.example")
    if parts.query or parts.fragment:
        raise ValueError("must be like https://data.example")
    return value.rstrip("/")


def read_origins(value: tuple[str, ...]) -> tuple[str, ...]:
    """Return origins (RFC 6454): scheme, host and port. Raises: ValueError."""
    for one in value:
        parts = _split(one, "https://data.example")
        if one != f"{parts.scheme}://{parts.netloc}":
            raise ValueError(f"{one!r} must be like https://data.example")
    return value


def read_prefect_address(value: str) -> str:
    """Return the address of a Prefect server's API. Raises: ValueError."""
    _split(value, "http://host:4200/api")
    return value.rstrip("/")


def read_issuer_address(value: str) -> str:
    """Return an address of an OIDC issuer as it is. Raises: ValueError."""
    parts = urlsplit(value)
    safe = parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or ""))
    if not (safe and parts.hostname) or parts.username is not None or parts.query or parts.fragment:
        raise ValueError("must be like https://host/path; http is possible on loopback only")
    return value


def read_broker_address(value: SecretStr) -> SecretStr:
    """Return the address of RabbitMQ, which has a password. Raises: ValueError."""
    parts = urlsplit(value.get_secret_value())
    if parts.scheme not in ("amqp", "amqps"):
        raise ValueError("must be like amqp://user:password@host:5672/vhost")
    if "no_verify_ssl" in parts.query:
        raise ValueError("the broker's certificate is always verified; cafile=… names the file of its authority")
    return value


def read_user_and_password(value: SecretStr) -> SecretStr:
    """Return `user:password`. Raises: ValueError."""
    if not all(value.get_secret_value().partition(":")):
        raise ValueError("must be like user:password")
    return value


IssuerAddress = Annotated[str, AfterValidator(read_issuer_address)]
BrokerAddress = Annotated[SecretStr, AfterValidator(read_broker_address)]
UserAndPassword = Annotated[SecretStr, AfterValidator(read_user_and_password)]
WebAddress = Annotated[str, AfterValidator(read_web_address)]
PrefectAddress = Annotated[str, AfterValidator(read_prefect_address)]
