"""TLS of the API as it is deployed: its certificate, exchanged while requests run, and who may not use it."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import requests

from datamanager.client import Client
from datamanager.errors import ServiceError, SettingsError
from datamanager.settings import Settings
from deployments.local.up import missing_parts
from deployments.tls_handshakes import ServerCertificate
from tests.support.api_process import ApiProcess, is_cut
from tests.support.authority import Authority
from tests.support.command import run
from tests.support.site import eventually

HOSTS = ("127.0.0.1", "localhost")
pytestmark = pytest.mark.xdist_group("tls")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tls")


@pytest.fixture(scope="module")
def authority(folder: Path) -> Authority:
    return Authority(folder)


def pair(authority: Authority, name: str) -> tuple[Path, Path]:
    """Return a new certificate for this host, and its key."""
    return authority.pair(name, *HOSTS)


@pytest.fixture(scope="module")
def secure(folder: Path, authority: Authority) -> Iterator[ApiProcess]:
    """An API that serves https; its files are `served.crt` and `served.key`."""
    certificate, key = pair(authority, "served")
    with ApiProcess(
        folder / "secure", tls_cert=certificate, tls_key=key, ca_file=authority.ca_file, client_timeout=2
    ) as running:
        yield running


def serial(api: ApiProcess, ca_file: Path, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> int:
    """Return the serial number of the certificate that a new connection gets."""
    context = ssl.create_default_context(cafile=ca_file)
    context.minimum_version = context.maximum_version = version
    with socket.create_connection(("127.0.0.1", api.port), 30) as plain:
        with context.wrap_socket(plain, server_hostname="localhost") as secured:
            return int(str(dict(secured.getpeercert() or {})["serialNumber"]), 16)


@pytest.mark.server
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_https_is_served(secure: ApiProcess, authority: Authority, version: ssl.TLSVersion) -> None:
    assert serial(secure, authority.ca_file, version)
    answer = requests.get(f"{secure.url}/DM/health/live", verify=str(authority.ca_file), timeout=30)
    assert answer.json() == {"status": "live"}
    assert "Server" not in answer.headers


@pytest.mark.attack(cwe=757, title="An old version of TLS is negotiated")
@pytest.mark.server
def test_old_versions_of_tls_and_plain_http_are_refused(secure: ApiProcess, authority: Authority) -> None:
    with pytest.warns(DeprecationWarning, match="TLSv1_1"), pytest.raises((ssl.SSLError, ConnectionError)):
        serial(secure, authority.ca_file, ssl.TLSVersion.TLSv1_1)
    with pytest.raises(requests.ConnectionError):
        requests.get(f"http://127.0.0.1:{secure.port}/DM/health/live", timeout=30)


@pytest.mark.server
def test_client_verifies_the_certificate(
    secure: ApiProcess, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Client(secure.url, ca_file=authority.ca_file) as client:
        assert [machine.name for machine in client.machines()] == ["here"]
    monkeypatch.setattr("datamanager.client.connection.PAUSE", 0.0)
    with Client(secure.url) as client, pytest.raises(ServiceError, match="certificate"):
        list(client.machines())
    env = {"DM_URL": secure.url, "DM_CA_FILE": str(authority.ca_file), "DM_HOME": str(secure.folder)}
    assert run("task", "list", env=env).returncode == 0


@pytest.mark.server
def test_supervisor_sees_whether_an_api_with_tls_is_ready(secure: ApiProcess, authority: Authority) -> None:
    served = secure.folder.parent.parent / "served.crt"
    key = served.with_suffix(".key")
    settings = Settings(port=secure.port, tls_cert=served, tls_key=key, prefect_api_url="http://127.0.0.1:1/api")
    assert missing_parts(settings) == ["Prefect at http://127.0.0.1:1/api"]
    other, _ = pair(authority, "of another host")  # whoever has taken the port
    unlike = settings.model_copy(update={"tls_cert": other})
    assert missing_parts(unlike) == [f"the API at {settings.api_url}"]


@pytest.mark.server
def test_certificate_is_exchanged_while_requests_run(secure: ApiProcess, authority: Authority, folder: Path) -> None:
    """A renewed pair serves new connections within seconds; no request fails meanwhile, whatever is half written."""
    stop, failures, served = threading.Event(), list[str](), list[int]()

    def ask() -> None:
        while not stop.is_set():
            try:
                answer = requests.get(f"{secure.url}/DM/health/live", verify=str(authority.ca_file), timeout=30)
                served.append(answer.status_code)
            except requests.RequestException as exc:
                failures.append(repr(exc))

    before = serial(secure, authority.ca_file)
    kept = requests.Session()
    assert kept.get(f"{secure.url}/DM/health/live", timeout=30, verify=str(authority.ca_file)).ok
    asking = threading.Thread(target=ask)
    asking.start()
    try:
        certificate, key = pair(authority, "renewed")
        shutil.copy(certificate, folder / "served.crt")  # of another key than served.key: it is not taken
        eventually(lambda: any(one["event"] == "certificate_not_loaded" for one in secure.log), "the warning")
        assert serial(secure, authority.ca_file) == before
        key.replace(folder / "served.key")
        eventually(lambda: serial(secure, authority.ca_file) != before, "the new certificate")
        assert serial(secure, authority.ca_file, ssl.TLSVersion.TLSv1_2) == serial(secure, authority.ca_file)
        assert kept.get(
            f"{secure.url}/DM/health/live", timeout=30, verify=str(authority.ca_file)
        ).ok  # its connection goes on
        rsa_certificate, rsa_key = authority.pair("of another kind", *HOSTS, rsa=True)
        renewed = serial(secure, authority.ca_file)
        rsa_certificate.replace(folder / "served.crt")
        rsa_key.replace(folder / "served.key")
        # a client that knows both kinds of keys gets the new one, not the kept one of the former kind
        eventually(lambda: serial(secure, authority.ca_file) != renewed, "the certificate of the other kind")
    finally:
        stop.set()
        asking.join()
    assert failures == []
    assert set(served) == {200}


@pytest.mark.attack(cwe=400, title="TLS handshakes are begun and never ended")
@pytest.mark.server
def test_client_that_does_not_shake_hands_is_disconnected(secure: ApiProcess) -> None:
    with closing(secure.connect()) as silent, closing(secure.connect(b"\x16\x03\x01\x02\x00\x01")) as slow:
        assert is_cut(silent)
        assert is_cut(slow)


@pytest.mark.server
def test_client_that_takes_no_answer_is_disconnected(secure: ApiProcess, authority: Authority) -> None:
    """What waits for it is counted below TLS too: the answer leaves the upper buffer for the lower one."""
    secure.fill(200, 60_000)
    context = ssl.create_default_context(cafile=authority.ca_file)
    with closing(secure.connect()) as plain, closing(context.wrap_socket(plain, server_hostname="localhost")) as client:
        client.sendall(b"GET /DM/info HTTP/1.1\r\nHost: localhost\r\n\r\n")
        eventually(lambda: [one for one in secure.log if one.get("why") == "takes no answer"], "it is disconnected")


@pytest.mark.server
def test_handshakes_count_as_connections(folder: Path, authority: Authority) -> None:
    """Connections that begin no handshake take the place of each other, and of nobody who has a request."""
    certificate, key = pair(authority, "narrow")
    with ApiProcess(folder / "narrow", tls_cert=certificate, tls_key=key, connections=10) as api:
        idle = [api.connect() for _ in range(40)]
        try:
            for _ in range(3):
                answer = requests.get(f"{api.url}/DM/health/live", verify=str(authority.ca_file), timeout=30)
                assert answer.status_code == 200
            assert api.connections <= 10
        finally:
            for one in idle:
                one.close()


def test_certificate_that_cannot_be_used_stops_the_start(authority: Authority, folder: Path) -> None:
    certificate, key = pair(authority, "one")
    _, other = pair(authority, "another")
    assert ServerCertificate(certificate, key).context.minimum_version == ssl.TLSVersion.TLSv1_2
    with pytest.raises(SettingsError, match=r"DM_TLS_CERT, DM_TLS_KEY: .*no certificate with its unencrypted key"):
        ServerCertificate(certificate, other)
    with pytest.raises(SettingsError, match=r"DM_TLS_CERT: .*nowhere.*No such file"):
        ServerCertificate(folder / "nowhere", key)
    os.chmod(key, 0o644)
    with pytest.raises(SettingsError, match=r"DM_TLS_KEY: .*accessible to other users: chmod 600"):
        ServerCertificate(certificate, key)
    encrypted = authority.pair("encrypted", *HOSTS, password=b"secret")
    with pytest.raises(SettingsError, match=r"the key is encrypted"):
        ServerCertificate(*encrypted)
