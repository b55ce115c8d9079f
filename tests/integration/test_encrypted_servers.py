"""RabbitMQ by amqps and PostgreSQL by sslmode, as docs/security.md sets them up: encrypted, and verified."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url

from datamanager.errors import BrokerUnavailable, CatalogueUnavailable
from datamanager.messaging.broker import Broker
from datamanager.settings import Settings
from models.core.listen import Listener
from models.database import Database
from models.migrate import upgrade
from tests.support.authority import Authority
from tests.support.ports import free_port
from tests.support.postgres import Databases, Postgres
from tests.support.rabbitmq import RabbitMq
from tests.support.site import eventually

pytestmark = [pytest.mark.server, pytest.mark.xdist_group("encrypted")]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def postgres_tls(services: Path, authority: Authority) -> Iterator[Postgres]:
    """A PostgreSQL whose certificate is for 127.0.0.1 only."""
    server = Postgres(services)
    certificate, key = authority.pair("postgres", "127.0.0.1")
    own = server.directory / "server.crt", server.directory / "server.key"
    for source, target in zip((certificate, key), own, strict=True):
        shutil.copy(source, target)
        shutil.chown(target, server.directory.owner(), server.directory.group())
    server.process.argv += ["-c", "ssl=on", "-c", f"ssl_cert_file={own[0]}", "-c", f"ssl_key_file={own[1]}"]
    with server:
        yield server


def with_query(url: str, host: str | None = None, **query: str) -> str:
    """Return a URL of settings for the same database."""
    changed = make_url(url).set(drivername="postgresql", query=query)
    return (changed if host is None else changed.set(host=host)).render_as_string(hide_password=False)


def connect(url: str) -> str | None:
    """Return the version of TLS that a catalogue's connection has. Raises: CatalogueUnavailable."""
    database = Database(Settings(database_url=url).catalogue_url)
    try:
        with database.read() as session:
            query = "SELECT version FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
            version: str | None = session.execute(text(query)).scalar()
            return version
    finally:
        database.close()


def test_catalogue_is_encrypted_and_verified(
    postgres_tls: Postgres, postgres: Databases, authority: Authority, tmp_path: Path
) -> None:
    url, trusted = postgres_tls.url(), str(authority.ca_file)
    assert connect(with_query(url, sslmode="verify-full", sslrootcert=trusted)) == "TLSv1.3"
    stranger = Authority(tmp_path).ca_file
    for refused in (
        with_query(url, sslmode="verify-full", sslrootcert=str(stranger)),
        with_query(url, host="localhost", sslmode="verify-full", sslrootcert=trusted),  # of another name
        with_query(postgres.url(), sslmode="require"),  # a server without TLS
    ):
        with pytest.raises(CatalogueUnavailable):
            connect(refused)


def test_notifications_of_the_catalogue_are_encrypted_too(postgres_tls: Postgres, authority: Authority) -> None:
    url = with_query(postgres_tls.url(), sslmode="verify-full", sslrootcert=str(authority.ca_file))
    database = Database(Settings(database_url=url).catalogue_url)
    heard = list[str]()
    try:
        upgrade(database)
        listener = Listener(database, heard.append)
        try:
            eventually(lambda: heard, "the listener is connected")
            query = "SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE datname = :name"
            with database.read() as session:
                assert session.execute(text(query), {"name": make_url(url).database}).scalar() is True
        finally:
            listener.close()
    finally:
        database.close()


@pytest.mark.slow  # it starts a node of its own
def test_broker_is_encrypted_and_verified(services: Path, authority: Authority, tmp_path: Path) -> None:
    certificate, key = authority.pair("rabbitmq", "127.0.0.1")
    port = free_port()
    lines = f"listeners.ssl.1 = 127.0.0.1:{port}\nssl_options.certfile = {certificate}\nssl_options.keyfile = {key}\n"
    stranger = Authority(tmp_path).ca_file

    async def connects(host: str, ca_file: Path) -> None:
        url = f"amqps://guest:guest@{host}:{port}/?cafile={quote(str(ca_file), safe='')}"
        settings = Settings(amqp_url=url)
        assert settings.amqp_url is not None
        broker = Broker(settings.amqp_url.get_secret_value())
        try:
            await broker.publish("dm.events", "test", b"{}", message_id="1")
        finally:
            await broker.close()

    with RabbitMq(services, further=lines):
        asyncio.run(connects("127.0.0.1", authority.ca_file))
        for host, ca_file in (("127.0.0.1", stranger), ("localhost", authority.ca_file)):
            with pytest.raises(BrokerUnavailable, match="ertificate"):
                asyncio.run(connects(host, ca_file))
