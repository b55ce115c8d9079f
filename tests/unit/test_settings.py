"""Settings: defaults, every kind of value, and one clear line for what is wrong."""

from __future__ import annotations

import os
import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from sqlalchemy.engine import make_url

from datamanager.errors import SettingsError
from datamanager.listening import is_loopback
from datamanager.machines import ArchiveRules
from datamanager.settings import Settings, load_settings

PROXIED = {"auth": "required", "trusted_proxy": "10.0.0.0/8, ::1"}


@pytest.fixture(autouse=True)
def _no_settings_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("DM_")]:
        monkeypatch.delenv(name)


def refused(monkeypatch: pytest.MonkeyPatch, **variables: str) -> str:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as error:
        load_settings()
    assert "\n" not in error.value.detail
    return error.value.detail


def test_defaults() -> None:
    settings = load_settings()
    assert (settings.host, settings.port, settings.prefect_port) == ("127.0.0.1", 5000, 4200)
    assert settings.home == Path("~/.dm").expanduser()
    assert settings.machines_file == settings.home / "machines.toml"
    assert settings.catalogue_url == f"sqlite+pysqlite:///{settings.home}/catalogue.db"
    assert settings.prefect_url == "http://127.0.0.1:4200/api"
    assert settings.prefect_ui == "http://127.0.0.1:4200"
    assert settings.api_url == "http://127.0.0.1:5000"
    assert (settings.amqp_url, settings.download_allow) == (None, ())
    assert (settings.keep_transfers, settings.keep_outbox) == (timedelta(days=90), timedelta(days=7))
    assert settings.idempotency_keep == timedelta(hours=24)


def test_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {
        "DM_HOME": str(tmp_path),
        "DM_PORT": "5001",
        "DM_LEASE": "30",
        "DM_HEARTBEAT": "0.5",
        "DM_KEEP_OUTBOX": "P3D",
        "DM_DATABASE_URL": "postgresql://me:pa%20ss@db.example/dm",
        "DM_AMQP_URL": "amqp://me:s3cret@mq.example/",
        "DM_DOWNLOAD_ALLOW": "127.0.0.1:8000, 10.0.0.0/8,,data.example",
        "DM_PREFECT_API_URL": "http://prefect.example:4200/api/",
        "DM_CONFIRM_BASE_DIR": "1",
        "DM_MACHINES": "~/m.toml",
        "DM_TEST_POSTGRES": "not ours",
    }.items():
        monkeypatch.setenv(name, value)
    settings = load_settings()
    assert (settings.home, settings.port) == (tmp_path, 5001)
    assert (settings.lease, settings.heartbeat) == (timedelta(seconds=30), timedelta(seconds=0.5))
    assert settings.keep_outbox == timedelta(days=3)
    catalogue = make_url(settings.catalogue_url)
    assert (catalogue.drivername, catalogue.password, catalogue.host) == ("postgresql+psycopg", "pa ss", "db.example")
    assert settings.download_allow == ("127.0.0.1:8000", "10.0.0.0/8", "data.example")
    assert settings.prefect_url == "http://prefect.example:4200/api"
    assert settings.confirm_base_dir is True
    assert settings.machines_file == Path("~/m.toml").expanduser()
    assert "s3cret" not in repr(settings)
    assert "pa%20ss" not in repr(settings)


def test_which_archives_are_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().archive_rules == ArchiveRules()
    monkeypatch.setenv("DM_ARCHIVE_TO", "tape")
    monkeypatch.setenv("DM_ARCHIVE_GROUPS", "fire=disk, space weather=tape2,a=b=disk")
    rules = load_settings(reclaim="0").archive_rules
    assert rules == ArchiveRules("tape", {"fire": "disk", "space weather": "tape2", "a=b": "disk"})


def test_flags_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DM_PORT", "5001")
    assert load_settings(port=5002).port == 5002
    assert load_settings(port=None).port == 5001


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("DM_PROT", "5000", "DM_PROT: unknown setting; known: "),
        ("DM_PORT", "0", "DM_PORT: "),
        ("DM_PORT", "65536", "DM_PORT: "),
        ("DM_PORT", "", "DM_PORT: "),
        ("DM_PORT", "http", "DM_PORT: "),
        ("DM_CONCURRENCY", "0", "DM_CONCURRENCY: "),
        ("DM_INSECURE_BIND", "1", "DM_INSECURE_BIND is no setting any more: "),
        ("DM_AUTH", "perhaps", "DM_AUTH: "),
        ("DM_TRUSTED_PROXY", "proxy.example", "DM_TRUSTED_PROXY"),
        ("DM_TLS_CERT", "/x.pem", "DM_TLS_KEY: DM_TLS_CERT and DM_TLS_KEY are set together"),
        ("DM_TLS_KEY", "/x.pem", "DM_TLS_CERT: DM_TLS_CERT and DM_TLS_KEY are set together"),
        ("DM_CORS_ORIGINS", "https://a.example/path", "DM_CORS_ORIGINS"),
        ("DM_CORS_ORIGINS", "*", "DM_CORS_ORIGINS"),
        ("DM_URL", "data.example", "DM_URL: "),
        ("DM_PREFECT_AUTH", "user", "DM_PREFECT_AUTH: must be like user:password"),
        ("DM_OIDC_LOGIN", "dm", "DM_OIDC_LOGIN: oidc_issuer and oidc_audience are set too"),
        ("DM_SESSION", "1", "DM_SESSION: must be at least one minute"),
        ("DM_LEASE", "long", "DM_LEASE: "),
        ("DM_DATABASE_URL", "mysql://x/y", "DM_DATABASE_URL: must be SQLite or PostgreSQL"),
        ("DM_DATABASE_URL", "nonsense", "DM_DATABASE_URL: must be like"),
        ("DM_AMQP_URL", "http://mq", "DM_AMQP_URL: must be like"),
        ("DM_AMQP_URL", "amqps://mq/?no_verify_ssl=1", "DM_AMQP_URL: the broker's certificate is always verified"),
        ("DM_PREFECT_API_URL", "prefect:4200", "DM_PREFECT_API_URL: must be like"),
        ("DM_ARCHIVE_GROUPS", "fire", "DM_ARCHIVE_GROUPS: 'fire' must be like group=machine"),
        ("DM_BUNDLE_SIZE", "0", "DM_BUNDLE_SIZE: "),
        ("DM_HOST", "0.0.0.0", "DM_HOST"),
        ("DM_HOST", "data.example", "set DM_TLS_CERT and DM_TLS_KEY, or DM_TRUSTED_PROXY"),
        ("DM_OIDC_ISSUER", "http://issuer.example", "DM_OIDC_ISSUER: must be like https://"),
        ("DM_OIDC_ISSUER", "https://me:pw@issuer.example", "DM_OIDC_ISSUER: must be like https://"),
        (
            "DM_OIDC_ISSUER",
            "https://issuer.example",
            "DM_OIDC_AUDIENCE: oidc_issuer and oidc_audience are set together",
        ),
        ("DM_OIDC_AUDIENCE", "dm", "DM_OIDC_ISSUER: oidc_issuer and oidc_audience are set together"),
        ("DM_OIDC_ALGORITHMS", "RS256,HS256", "DM_OIDC_ALGORITHMS: must be some of RS256, PS256, ES256, EdDSA"),
        ("DM_OIDC_ALGORITHMS", "", "DM_OIDC_ALGORITHMS: must be some of"),
        ("DM_OIDC_JWKS_URL", "http://keys.example/jwks", "DM_OIDC_JWKS_URL: must be like https://"),
        ("DM_HEARTBEAT", "0", "DM_LEASE: must be at least twice the heartbeat"),
        ("DM_HEARTBEAT", "10", "DM_LEASE: must be at least twice the heartbeat"),
    ],
)
def test_one_clear_line(monkeypatch: pytest.MonkeyPatch, variable: str, value: str, words: str) -> None:
    assert words in refused(monkeypatch, **{variable: value})


@pytest.mark.parametrize("variable", ["DM_DATABASE_URL", "DM_AMQP_URL"])
def test_a_refused_address_does_not_show_its_password(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    assert "s3cret" not in refused(monkeypatch, **{variable: "mysql://me:s3cret@db/x"})


@pytest.mark.parametrize(
    ("overrides", "missing"),
    [
        ({"auth": "none"}, "DM_AUTH=required, and DM_TLS_CERT"),
        ({"auth": "required"}, "set DM_TLS_CERT"),
        ({"auth": "none", "tls_cert": "/c", "tls_key": "/k"}, "set DM_AUTH=required"),
        ({"auth": "none", "trusted_proxy": "10.0.0.0/8"}, "a proxy opens the API to other hosts; set DM_AUTH=required"),
        ({"auth": "required", "tls_cert": "/c", "tls_key": "/k"}, None),
        ({"auth": "required", "trusted_proxy": "10.0.0.0/8"}, None),
    ],
)
@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "data.example"])
def test_an_address_of_others_takes_authentication_and_tls(
    overrides: dict[str, str], missing: str | None, host: str
) -> None:
    if missing is None:
        assert load_settings(host=host, **overrides).host == host
        return
    with pytest.raises(SettingsError, match=missing):
        load_settings(host=host, **overrides)


def test_a_proxy_on_loopback_takes_authentication_too() -> None:
    with pytest.raises(SettingsError, match="DM_TRUSTED_PROXY: a proxy opens the API to other hosts"):
        load_settings(auth="none", trusted_proxy="127.0.0.1")


def test_secrets_are_never_shown() -> None:
    named = {name for name in Settings.model_fields if re.search("secret|password|auth$|_url$", name)}
    kinds = {name: str(Settings.model_fields[name].annotation) for name in named}
    shown = {name for name, kind in kinds.items() if "SecretStr" not in kind}
    # a way to choose, a path, and addresses that may not hold a password
    assert shown == {"auth", "secrets_key", "prefect_api_url", "prefect_ui_url", "oidc_jwks_url", "vault_url"}
    for name in ("prefect_api_url", "prefect_ui_url", "oidc_jwks_url", "vault_url", "oidc_issuer", "url"):
        for login in ("me:s3cret", ":s3cret"):
            with pytest.raises(SettingsError) as refused:
                load_settings(**{name: f"https://{login}@host.example/x"})
            assert refused.value.detail.startswith(f"DM_{name.upper()}: ")  # not for want of another setting
            assert "s3cret" not in refused.value.detail


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError):
        load_settings().port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("overrides", "url"),
    [
        ({"host": "localhost"}, "http://localhost:5000"),
        ({"host": "::1"}, "http://[::1]:5000"),
        ({"host": "0.0.0.0", **PROXIED}, "http://127.0.0.1:5000"),
        ({"host": "::", **PROXIED}, "http://[::1]:5000"),
        ({"host": "data.example", **PROXIED, "port": 80}, "http://data.example:80"),
        ({"host": "data.example", "auth": "required", "tls_cert": "/c", "tls_key": "/k"}, "https://data.example:5000"),
        ({"url": "https://data.example/"}, "https://data.example"),
    ],
)
def test_where_a_client_reaches_the_api(overrides: dict[str, Any], url: str) -> None:
    assert load_settings(**overrides).api_url == url


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("localhost.example", False),
    ],
)
def test_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


def test_every_setting_has_a_variable() -> None:
    assert all(name == name.lower() and name.isidentifier() for name in Settings.model_fields)
