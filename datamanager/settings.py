"""The settings of a process, from `DM_*` variables, typed and read once at the composition root.

Nothing else in the project reads the environment.
"""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from datamanager.errors import SettingsError
from datamanager.listening import REMOVED, Network, read_address, read_networks, require_safe
from datamanager.machines import ArchiveRules, describe
from datamanager.setting_values import (
    OIDC_ALGORITHMS,
    AbsolutePath,
    AmqpUsers,
    ArchiveGroups,
    DatabaseUrl,
    Names,
    OidcAlgorithms,
    Port,
    Seconds,
)
from datamanager.web_addresses import (
    BrokerAddress,
    IssuerAddress,
    PrefectAddress,
    UserAndPassword,
    WebAddress,
    read_origins,
)

PREFIX = "DM_"
CREDENTIAL = "DM_CREDENTIAL_"
"""Prefix of the variables that hold stored credentials."""
TOKEN = "DM_TOKEN"  # noqa: S105  # the name of a variable
"""Variable of clients: the token that they send. The service doesn't read it."""
TOKEN_FILE = "admin-token"  # noqa: S105  # the name of a file
"""File in `home` with the token that `dm up` makes, for clients of this host."""


HOME = Path("~/.dm")
"""The default of `home`."""


class Settings(BaseSettings):
    """Every setting; an unknown `DM_*` variable or a bad value stops the start (see `load_settings`).

    The text below a field is its description: `dm … --help` and docs/reference/settings.md show it.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, extra="forbid", frozen=True, env_ignore_empty=False, use_attribute_docstrings=True
    )

    home: AbsolutePath = Field(default_factory=lambda: HOME)
    """Folder of the catalogue, Prefect's data, logs, sockets and machines.toml; it must be on a local file system."""
    host: str = "127.0.0.1"
    """Address that the API listens on; an address other than loopback requires `auth` and `tls_cert` or
    `trusted_proxy`."""
    port: Port = 5000
    """Port of the API."""
    auth: Literal["required", "none"] = "required"
    """`required`: a request must have a token. `none`: whoever reaches the API may do everything; `host` must be a
    loopback address."""
    tls_cert: AbsolutePath | None = None
    """Certificate (PEM, with its chain) of the API, which then serves https only; it is read again when it changes."""
    tls_key: AbsolutePath | None = None
    """Key of `tls_cert` (PEM, not encrypted), which only the service's user may read."""
    trusted_proxy: Annotated[tuple[Network, ...], NoDecode, BeforeValidator(read_networks)] = ()
    """Addresses or networks of the proxies in front; only their X-Forwarded-For and -Proto count (comma-separated)."""
    allowed_hosts: Names = ()
    """Additional host names that clients may use to address the API (comma-separated)."""
    cors_origins: Annotated[Names, AfterValidator(read_origins)] = ()
    """Origins (`https://host`) whose pages may read answers of the API, with a token and never with a session
    (comma-separated)."""
    url: WebAddress | None = None
    """Address of the API for clients (`https://data.example`); default: `host` and `port`."""
    ca_file: AbsolutePath | None = None
    """File of the authorities (PEM) that clients verify the API's certificate with; default: those of the system."""
    session: Seconds = timedelta(hours=8)
    """Seconds after which a person has to log in again in the browser."""
    connections: Annotated[int, Field(ge=1, le=100_000)] = 1000
    """Maximum number of connections to the API; fewer where the process may not open so many files. One more takes the
    place of the one that has been idle the longest; without such a one it is answered 503."""
    client_timeout: Seconds = timedelta(seconds=30)
    """Seconds after which the API disconnects a client: its request's head is not complete by then, or it has sent or
    taken nothing of a body for so long."""
    streams_per_client: Annotated[int, Field(ge=1)] = 16
    """Maximum number of listings of all objects (`GET /DM/info` without a limit) that the API sends to one address at
    once; all clients behind a proxy that is not a `trusted_proxy` have its address."""
    max_metadata: Annotated[int, Field(ge=2)] = 65_536
    """Maximum size of an object's metadata, in bytes of JSON."""
    prefect_port: Port = 4200
    """Port of the embedded Prefect server and its UI, on 127.0.0.1."""
    prefect_memory: Annotated[int, Field(gt=0)] = 2**30
    """Bytes that the Prefect server may have resident; with more it ends between two requests and is started again."""
    prefect_api_url: PrefectAddress | None = None
    """URL of an existing Prefect server (`http://host:4200/api`), used instead of the embedded one."""
    prefect_auth: UserAndPassword | None = None
    """`user:password` that the Prefect server asks for and its clients send; required when it is not on loopback."""
    prefect_ui_url: WebAddress | None = None
    """Address by which people reach the Prefect UI (`https://data.example/prefect`), if a proxy in front logs them in
    (deployments/nginx)."""
    database_url: DatabaseUrl | None = None
    """Catalogue database: `sqlite:////path/file.db` or `postgresql://user:password@host/name`; default: SQLite in
    `home`."""
    amqp_url: BrokerAddress | None = None
    """RabbitMQ: `amqp://user:password@host/vhost`; if not set, no broker is used."""
    amqp_users: AmqpUsers = ()
    """Users of RabbitMQ whose messages need no token, each with the identifier of the service token that says who they
    are and what they may, as `user=identifier` (comma-separated)."""
    reply_prefix: Annotated[str, Field(pattern=r"^[\x21-\x7e]{1,100}$")] = "dm-reply."
    """How the names of queues begin that the answers of messages may go to (`reply_to`); no other queue is written to,
    but RabbitMQ's direct reply-to."""
    machines: AbsolutePath | None = None
    """Path of machines.toml; default: `machines.toml` in `home`, created at the first start."""
    download_allow: Names = ()
    """Hosts, networks (CIDR) or host:port that getexternal may connect to although they are not public
    (comma-separated)."""
    download_deny: Names = ()
    """Hosts (with all their subdomains), networks (CIDR), host:port or :port that getexternal never connects to; takes
    precedence over `download_allow` (comma-separated)."""
    download_insecure: bool = False
    """`1` allows requests to disable the verification of TLS certificates (`verify_tls: false`)."""
    max_download: Annotated[int, Field(gt=0)] = 2**44
    """Maximum size of a download in bytes."""
    secrets_key: AbsolutePath | None = None
    """Key file that encrypts the secrets of requests; default: `secrets.key` in `home`, created when first needed.
    Hosts that share a catalogue need the same key."""
    roles: AbsolutePath | None = None
    """Path of a roles.toml that replaces the roles of the package."""
    identity: AbsolutePath | None = None
    """Path of identity.toml, the rules that make a person, groups and roles of a bearer token's claims; default:
    `identity.toml` in `home`. Without the file no bearer token is accepted."""
    quotas: AbsolutePath | None = None
    """Path of quotas.toml, what groups and persons may have at most; default: `quotas.toml` in `home`. Without the file
    nothing is limited."""
    oidc_issuer: IssuerAddress | None = None
    """OIDC issuer whose bearer tokens are accepted, as its tokens name it (`https://…`; http on loopback only)."""
    oidc_audience: str | None = None
    """Audience (`aud`) that a bearer token must have; required with `oidc_issuer`."""
    oidc_clients: Names = ()
    """Clients of the issuer whose tokens are accepted (`azp`, else `client_id`; comma-separated); if empty, all."""
    oidc_algorithms: OidcAlgorithms = OIDC_ALGORITHMS
    """Signatures that are accepted, of RS256, PS256, ES256 and EdDSA (comma-separated)."""
    oidc_login: str | None = None
    """Client of the issuer by which people log in in the browser; if not set, they paste a service token."""
    oidc_login_secret: SecretStr | None = None
    """Secret of that client; without one it is a public client."""
    oidc_jwks_url: IssuerAddress | None = None
    """Address of the issuer's keys, if they are not at its own origin; otherwise its discovery document says it."""
    oidc_ca: AbsolutePath | None = None
    """File of the authorities (PEM) that the issuer's certificate is verified with; default: those of the system."""
    ssh_ca: AbsolutePath | None = None
    """Key file of the built-in authority for SSH certificates; default: `ssh-ca.key` in `home`, made by
    `dm machine ca`."""
    vault_url: IssuerAddress | None = None
    """URL of a Vault or OpenBao server whose SSH secrets engine signs instead of the built-in authority (`https://…`;
    http on loopback only)."""
    vault_role: str | None = None
    """Role of the SSH secrets engine; required with `vault_url`."""
    vault_mount: str = "ssh"
    """Path where the SSH secrets engine is mounted."""
    vault_token: AbsolutePath | None = None
    """File with the token for `vault_url`, read at each use; required with `vault_url`."""
    vault_ca: AbsolutePath | None = None
    """File of the authorities (PEM) that the certificate of `vault_url` is verified with; default: those of the
    system."""
    archive_to: str | None = None
    """Archive machine of requests that name none; if not set: the archive machine, if there is exactly one."""
    archive_groups: ArchiveGroups = ()
    """Archive machines of particular groups, as `group=machine` (comma-separated)."""
    bundle_size: Annotated[int, Field(gt=0)] = 2**33
    """Maximum size in bytes of a bundle of several objects; a larger object gets a bundle of its own."""
    retention: AbsolutePath | None = None
    """Path of retention.toml, the rules that archive or delete old objects; default: `retention.toml` in `home`.
    Without the file there are no rules."""
    reclaim: bool = True
    """`0` keeps bundles that no object needs any more; otherwise a mover deletes them."""
    concurrency: Annotated[int, Field(ge=1, le=256)] = 16
    """Maximum number of transfers that one mover runs at the same time."""
    lease: Seconds = timedelta(seconds=15)
    """Seconds without a heartbeat after which the transfers of a mover are given to another mover."""
    heartbeat: Seconds = timedelta(seconds=3)
    """Seconds between two heartbeats of a mover; at most half of `lease`."""
    stop_grace: Seconds = timedelta(seconds=10)
    """Seconds that a stopping mover lets its transfers run before it returns them to the queue."""
    max_attempts: Annotated[int, Field(ge=1, le=100)] = 5
    """Maximum number of attempts of a transfer before it ends in ERROR."""
    query_timeout: Seconds = timedelta(seconds=10)
    """Seconds after which a query of the API that only reads ends with `query_too_slow`."""
    idempotency_keep: Seconds = timedelta(hours=24)
    """Seconds for which answers to an Idempotency-Key are kept."""
    keep_transfers: Seconds = timedelta(days=90)
    """Seconds for which ended transfers are kept."""
    keep_outbox: Seconds = timedelta(days=7)
    """Seconds for which sent messages are kept."""
    confirm_base_dir: bool = False
    """`1` accepts that a machine's base_dir has changed although the catalogue has objects there."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.oidc_issuer is None) != (self.oidc_audience is None):
            missing = "oidc_issuer" if self.oidc_issuer is None else "oidc_audience"
            raise ValueError(f"{missing}: oidc_issuer and oidc_audience are set together")
        if (self.tls_cert is None) != (self.tls_key is None):
            missing = "tls_cert" if self.tls_cert is None else "tls_key"
            raise ValueError(f"{missing}: DM_TLS_CERT and DM_TLS_KEY are set together")
        require_safe(
            self.host, authenticated=self.auth != "none", tls=self.tls_cert is not None, proxies=self.trusted_proxy
        )
        if self.oidc_login is not None and self.oidc_issuer is None:
            raise ValueError("oidc_login: oidc_issuer and oidc_audience are set too")
        if self.oidc_login is not None and self.oidc_clients and self.oidc_login not in self.oidc_clients:
            raise ValueError(f"oidc_clients: {self.oidc_login} (oidc_login) is one of them")
        if self.session < timedelta(minutes=1):
            raise ValueError("session: must be at least one minute")
        if len({one is None for one in (self.vault_url, self.vault_role, self.vault_token)}) > 1:
            raise ValueError("vault_url: vault_url, vault_role and vault_token are set together")
        if self.heartbeat <= timedelta(0) or self.lease < 2 * self.heartbeat:
            raise ValueError("lease: must be at least twice the heartbeat")
        if self.client_timeout < timedelta(seconds=1):
            raise ValueError("client_timeout: must be at least one second")
        if self.query_timeout <= timedelta(0):
            raise ValueError("query_timeout: must be more than 0")
        if self.stop_grace < timedelta(0):
            raise ValueError("stop_grace: must not be negative")
        return self

    @property
    def machines_file(self) -> Path:
        """Path of machines.toml."""
        return self.machines or self.home / "machines.toml"

    @property
    def token_file(self) -> Path:
        """Path of the token that clients of this host use."""
        return self.home / TOKEN_FILE

    @property
    def amqp_tokens(self) -> dict[str, str]:
        """The identifiers of the service tokens that users of RabbitMQ have."""
        return {user: identifier for user, _, identifier in (entry.rpartition("=") for entry in self.amqp_users)}

    @property
    def secrets_key_file(self) -> Path:
        """Path of the key that encrypts secrets."""
        return self.secrets_key or self.home / "secrets.key"

    @property
    def ssh_ca_file(self) -> Path:
        """Path of the built-in authority's key; the file may be missing."""
        return self.ssh_ca or self.home / "ssh-ca.key"

    @property
    def retention_file(self) -> Path:
        """Path of the retention rules; the file may be missing."""
        return self.retention or self.home / "retention.toml"

    @property
    def identity_file(self) -> Path:
        """Path of the rules for bearer tokens; the file may be missing."""
        return self.identity or self.home / "identity.toml"

    @property
    def quotas_file(self) -> Path:
        """Path of the quotas; the file may be missing."""
        return self.quotas or self.home / "quotas.toml"

    @property
    def archive_rules(self) -> ArchiveRules:
        """The archive machines of requests that name none."""
        of_group = {group: machine for group, _, machine in (entry.rpartition("=") for entry in self.archive_groups)}
        return ArchiveRules(self.archive_to, of_group)

    @property
    def catalogue_url(self) -> str:
        """SQLAlchemy URL of the catalogue with the driver of this project. It contains a password: never log it."""
        if self.database_url is None:
            return f"sqlite+pysqlite:///{self.home / 'catalogue.db'}"
        from sqlalchemy.engine import make_url

        url = make_url(self.database_url.get_secret_value())
        driver = "sqlite+pysqlite" if url.get_backend_name() == "sqlite" else "postgresql+psycopg"
        return url.set(drivername=driver).render_as_string(hide_password=False)

    @property
    def prefect_url(self) -> str:
        """URL of the Prefect API, embedded or external."""
        return self.prefect_api_url or f"http://127.0.0.1:{self.prefect_port}/api"

    @property
    def prefect_ui(self) -> str:
        """URL of the Prefect UI."""
        return self.prefect_ui_url or self.prefect_url.removesuffix("/api")

    @property
    def own_host(self) -> str:
        """Where the API is reached on this host."""
        address = read_address(self.host)
        if address is None or not address.is_unspecified:
            return self.host
        return "::1" if address.version == 6 else "127.0.0.1"

    @property
    def api_url(self) -> str:
        """URL of the API for clients: the one that is set, else that on this host."""
        if self.url is not None:
            return self.url
        scheme, host = "http" if self.tls_cert is None else "https", self.own_host
        return f"{scheme}://[{host}]:{self.port}" if ":" in host else f"{scheme}://{host}:{self.port}"


def load_settings(**overrides: Any) -> Settings:
    """Read the environment; `overrides` (command-line flags) take precedence, None means not given.

    Raises: SettingsError with one line that names the variable and the values allowed.
    """
    known = {TOKEN, *(PREFIX + name.upper() for name in Settings.model_fields)}
    for variable in os.environ:
        # DM_TEST_* belongs to the test suite
        if variable in REMOVED:
            raise SettingsError(f"{variable} is no setting any more: {REMOVED[variable]}")
        if variable.startswith(PREFIX) and variable not in known and not variable.startswith(("DM_TEST_", CREDENTIAL)):
            raise SettingsError(f"{variable}: unknown setting; known: {', '.join(sorted(known))}")
    try:
        return Settings(**{name: value for name, value in overrides.items() if value is not None})
    except ValidationError as exc:
        line = describe(exc)
        name, _, rest = line.partition(":")
        label = PREFIX + name.upper() if name in Settings.model_fields else name
        raise SettingsError(f"{label}:{rest}") from exc


def load_credentials() -> dict[str, SecretStr]:
    """Return the stored credentials of the environment as JSON texts, by variable name without the prefix."""
    found = {name: value for name, value in os.environ.items() if name.startswith(CREDENTIAL)}
    return {name.removeprefix(CREDENTIAL): SecretStr(value) for name, value in found.items()}
