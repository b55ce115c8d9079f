"""Secrets at rest, which parts of a request are secret, and where a stored credential may be sent."""

from __future__ import annotations

import os
import stat
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cryptography.fernet import Fernet

from api.http.idempotency import fingerprint_of
from datamanager.domain.requests import GetExternalRequest
from datamanager.errors import (
    CredentialNotAllowed,
    CredentialUnusable,
    InvalidRequest,
    NotSupported,
    SecretsUnreadable,
    SettingsError,
)
from datamanager.sealing import Sealer, is_open
from datamanager.settings import Settings, load_credentials, load_settings
from datamanager.sources.terms.credentials import credential_name, read_credential, variable_end, with_credential
from datamanager.sources.terms.request_secrets import HIDDEN, joined, parted, refuse_secrets, sealed
from deployments.amqp.submission import Call, read_message

SECRET = "hunter2-5ecret"


@pytest.fixture
def sealer(tmp_path: Path) -> Sealer:
    return Sealer(tmp_path / "home" / "secrets.key", made_here=True)


def request(**fields: Any) -> GetExternalRequest:
    return GetExternalRequest(**{"machine": "alpha", "filename": "x", "url": "https://data.example/x"} | fields)


# --- the key ---------------------------------------------------------------------------------------------------------


def test_what_was_sealed_is_opened_and_tells_nothing_until_then(sealer: Sealer) -> None:
    blob = sealer.seal({"password": SECRET, "über": [1, None]})
    assert SECRET not in blob
    assert sealer.open(blob) == {"password": SECRET, "über": [1, None]}
    assert sealer.seal({"password": SECRET}) != sealer.seal({"password": SECRET})


def test_the_key_is_made_when_it_is_needed_and_is_its_owners_alone(tmp_path: Path) -> None:
    file = tmp_path / "secrets.key"
    sealer = Sealer(file, made_here=True)
    with pytest.raises(SecretsUnreadable, match="is missing"):
        sealer.open("x")  # to open makes none: it could not be the right one
    assert not file.exists()
    sealer.seal({})
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["secrets.key"]


def test_of_many_who_make_the_key_at_once_all_have_the_same(tmp_path: Path) -> None:
    sealers = [Sealer(tmp_path / "k", made_here=True) for _ in range(16)]
    with ThreadPoolExecutor(16) as pool:
        blobs = list(pool.map(lambda one: one.seal({"a": SECRET}), sealers))
    assert [sealers[0].open(blob) for blob in blobs] == [{"a": SECRET}] * 16


def test_a_key_that_a_setting_names_is_not_made(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, secrets_key=tmp_path / "shared.key")
    with pytest.raises(SecretsUnreadable, match=r"key file \(DM_SECRETS_KEY.*\) is missing"):
        Sealer.of(settings).seal({})
    (tmp_path / "shared.key").write_bytes(Fernet.generate_key())
    (tmp_path / "shared.key").chmod(0o400)
    assert Sealer.of(settings).open(Sealer.of(settings).seal({"a": 1})) == {"a": 1}
    assert Sealer.of(Settings(home=tmp_path)).seal({})
    assert (tmp_path / "secrets.key").exists()


def test_another_key_is_told_apart_from_damage_by_nobody_but_is_an_error(tmp_path: Path, sealer: Sealer) -> None:
    blob = sealer.seal({"password": SECRET})
    other = Sealer(tmp_path / "other", made_here=True)
    other.seal({})
    for broken in (blob, blob[:-1], "nonsense", "ü"):
        with pytest.raises(SecretsUnreadable, match="not the one that encrypted the secrets") as caught:
            other.open(broken)
        assert SECRET not in "".join(traceback.format_exception(caught.value))
    assert not caught.value.retryable


@pytest.mark.parametrize(
    ("content", "mode", "wanted"),
    [
        *((None, mode, "accessible to other users: chmod 600") for mode in (0o640, 0o644, 0o620, 0o604, 0o610)),
        (b"too short", 0o600, "contains no key"),
        (b"", 0o600, "contains no key"),
    ],
)
def test_a_bad_key_file_is_refused(tmp_path: Path, content: bytes | None, mode: int, wanted: str) -> None:
    file = tmp_path / "secrets.key"
    file.write_bytes(Fernet.generate_key() if content is None else content)
    file.chmod(mode)
    with pytest.raises(SecretsUnreadable, match=wanted) as caught:
        Sealer(file, made_here=True).seal({})
    assert str(tmp_path) not in str(caught.value)  # errors are shown to clients


@pytest.mark.parametrize(
    ("mode", "owner", "user", "found"),
    [
        (0o600, 1000, 1000, False),
        (0o400, 0, 0, False),
        (0o440, 1000, 1000, True),
        (0o640, 0, 0, True),
        (0o640, 1001, 1000, True),
        (0o440, 0, 1000, False),  # a secret that is mounted: root's, for the group of the service
        (0o640, 0, 1000, False),
        (0o660, 0, 1000, True),
        (0o444, 0, 1000, True),
    ],
)
def test_the_group_may_read_what_root_hands_to_a_service(mode: int, owner: int, user: int, found: bool) -> None:
    assert is_open(mode, owner, user) is found


def test_a_key_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SecretsUnreadable):
        Sealer(tmp_path / "file" / "secrets.key", made_here=True).seal({})


# --- requests --------------------------------------------------------------------------------------------------------

SECRETS: dict[str, Any] = {
    "password": SECRET,
    "token": SECRET,
    "headers": {"X-Api-Key": SECRET, "Accept": SECRET},
    "query": {"key": SECRET},
    "client_cert": SECRET,
    "proxy_password": SECRET,
    "session_token": SECRET,
    "secret_key": SECRET,
    "private_key": SECRET,
    "mirrors": [f"https://mirror.example/x?sig={SECRET}", f"https://user:{SECRET}@mirror.example/y"],
    "proxy": f"http://user:{SECRET}@proxy.example:3128",
    "checksum": f"https://data.example/SHA256SUMS?token={SECRET}",
    "never-heard-of": {"deep": [SECRET]},
}


def test_no_secret_is_left_in_a_request_and_all_come_back(sealer: Sealer) -> None:
    asked = request(url=f"https://data.example/x?token={SECRET}", options=SECRETS | {"size": 5, "username": "bob"})
    shown, blob = sealed(asked, sealer)
    assert blob is not None
    assert SECRET not in shown.model_dump_json() + repr(shown) + blob
    assert shown.url == "https://data.example/x?…"
    assert shown.options["headers"] == {"X-Api-Key": HIDDEN, "Accept": HIDDEN}
    assert (shown.options["size"], shown.options["username"]) == (5, "bob")
    assert joined(shown, sealer.open(blob)) == asked
    assert parted(shown)[0] == shown  # there is nothing more to hide


@pytest.mark.parametrize("name", SECRETS)
def test_each_secret_is_hidden_by_itself_and_refused_in_messages(name: str, sealer: Sealer) -> None:
    asked = request(options={name: SECRETS[name]})
    shown, secrets = parted(asked)
    assert SECRET not in shown.model_dump_json()
    assert secrets == {"url": asked.url, "options": {name: SECRETS[name]}}
    why = "unknown; " if name == "never-heard-of" else "secrets are not accepted here"
    with pytest.raises((NotSupported, InvalidRequest), match=rf"options\.{name}: {why}") as caught:
        refuse_secrets(asked.options, "here")
    assert SECRET not in str(caught.value)


def test_a_request_without_secrets_needs_no_key(tmp_path: Path) -> None:
    asked = request(options={"credential": "site", "timeout": 5, "mirrors": ["https://b.example/x"]})
    sealer = Sealer(tmp_path / "none", made_here=False)
    assert sealed(asked, sealer) == (asked, None)
    assert len(fingerprint_of("PUT", "/DM/getexternal", asked, sealer)) == 64
    refuse_secrets(asked.options, "here")


def test_the_fingerprint_notices_a_changed_secret_and_can_not_be_guessed(tmp_path: Path, sealer: Sealer) -> None:
    one, same, other = (request(options={"password": password}) for password in (SECRET, SECRET, "hunter3"))
    mark = fingerprint_of("PUT", "/DM/getexternal", one, sealer)
    assert fingerprint_of("PUT", "/DM/getexternal/", same, sealer) == mark
    assert fingerprint_of("PUT", "/DM/getexternal", other, sealer) != mark
    assert fingerprint_of("PUT", "/DM/async/getexternal", one, sealer) != mark
    with_query = request(url="https://data.example/x?a=1")
    assert fingerprint_of("PUT", "/", with_query, sealer) != fingerprint_of(
        "PUT", "/", request(url="https://data.example/x?a=2"), sealer
    )
    assert fingerprint_of("PUT", "/DM/getexternal", one, Sealer(tmp_path / "other", made_here=True)) != mark
    with pytest.raises(SecretsUnreadable):
        fingerprint_of("PUT", "/DM/getexternal", one)


def test_a_url_that_can_not_be_read_is_hidden_as_well() -> None:
    shown, secrets = parted(request(url="https:/data.example?token=hunter2"))
    assert "hunter2" not in shown.url
    assert secrets is not None


def test_the_digest_of_a_message_is_the_same_whatever_the_secret() -> None:
    def call(options: object, url: object = "https://a/x") -> Call:
        body = {"specversion": "1.0", "id": "1", "source": "/t", "type": "dm.request.getexternal"}
        import orjson

        found = read_message(orjson.dumps(body | {"data": {"url": url, "options": options}}))
        assert isinstance(found, Call)
        return found

    assert call({"password": "a"}).fingerprint == call({"password": "b"}).fingerprint
    assert call('{"password": "a"}').fingerprint == call('{"password": "b"}').fingerprint
    assert call("hunter2").fingerprint == call("hunter3").fingerprint
    assert call({}, "https://a/x?t=1").fingerprint == call({}, "https://a/x?t=2").fingerprint
    assert call({}, "https://u:1@a/x").fingerprint == call({}, "https://u:2@a/x").fingerprint
    assert call({}, "https://a/x").fingerprint != call({}, "https://a/y").fingerprint
    assert call({"credential": "a"}).fingerprint != call({"credential": "b"}).fingerprint


# --- stored credentials ----------------------------------------------------------------------------------------------


def stored(*hosts: str, **options: Any) -> Any:
    return read_credential("site", {"hosts": list(hosts), "password": SECRET, **options})


def test_a_credential_is_read_from_json() -> None:
    found = read_credential("site", f'{{"hosts": ["Data.Example.", "[::1]:22"], "password": "{SECRET}"}}')
    assert found.hosts == {("data.example", None), ("::1", 22)}
    assert found.options == {"password": SECRET}
    assert SECRET not in repr(found)


@pytest.mark.parametrize(
    "value",
    [
        SECRET,
        f'"{SECRET}"',
        None,
        [SECRET],
        {"password": SECRET},
        {"password": SECRET, "hosts": []},
        {"password": SECRET, "hosts": "data.example"},
        {"password": SECRET, "hosts": [1]},
        {"password": SECRET, "hosts": ["https://data.example/"]},
        {"password": SECRET, "hosts": ["data.example:0"]},
        {"password": SECRET, "hosts": ["*"]},
        {"password": SECRET, "hosts": ["127.1"]},
        {"password": SECRET, "hosts": [""]},
        {"password": SECRET, "hosts": ["data.example"], "credential": "another"},
    ],
)
def test_a_credential_that_does_not_say_where_it_may_go_is_refused(value: object) -> None:
    with pytest.raises(CredentialUnusable, match="credential site") as caught:
        read_credential("site", value)
    assert SECRET not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("hosts", "url"),
    [
        (["data.example"], "https://data.example/x"),
        (["data.example"], "https://DATA.example.:443/x"),
        (["data.example"], "ftps://data.example/x"),
        (["data.example"], "sftp://data.example/x"),
        (["data.example:80"], "http://data.example/x"),
        (["data.example:8443"], "https://data.example:8443/x"),
        (["a.example", "data.example"], "https://data.example/x"),
        (["[2001:db8::1]"], "https://[2001:db8::1]/x"),
        (["s3.amazonaws.com"], "s3://bucket/key"),
    ],
)
def test_a_credential_goes_where_it_may(hosts: list[str], url: str) -> None:
    asked = request(url=url, options={"credential": "site", "password": "own", "timeout": 5})
    assert with_credential(asked, stored(*hosts)).options == {"password": SECRET, "timeout": 5}


@pytest.mark.parametrize(
    ("hosts", "url"),
    [
        (["data.example"], "https://evil.example/x"),
        (["data.example"], "https://data.example.evil.example/x"),
        (["data.example"], "https://evil.example/data.example"),
        (["data.example"], "https://sub.data.example/x"),
        (["data.example"], "https://data.example:8443/x"),
        (["data.example"], "http://data.example/x"),
        (["data.example"], "http://data.example:443/x"),
        (["data.example"], "ftp://data.example/x"),
        (["data.example"], "https://data.example@evil.example/x"),
        (["data.example"], "https://data.example\\@evil.example/x"),
        (["data.example"], "https://evil.example#@data.example/x"),
        (["data.example"], "https://evil.example?@data.example/x"),
        (["data.example"], "//data.example/x"),
        (["data.example"], "gopher://data.example/x"),
        (["data.example"], "s3://data.example/x"),
        (["data.example"], "https://[::1/x"),
        (["127.0.0.1"], "https://2130706433/x"),
    ],
)
def test_a_credential_goes_nowhere_else(hosts: list[str], url: str) -> None:
    with pytest.raises(CredentialNotAllowed, match="credential site may not be sent to") as caught:
        with_credential(request(url=url, options={"credential": "site"}), stored(*hosts))
    assert SECRET not in str(caught.value)
    assert not caught.value.retryable


@pytest.mark.parametrize(
    "options",
    [
        {"mirrors": ["https://data.example/y", "https://evil.example/x"]},
        {"mirrors": "https://evil.example/x"},
        {"mirrors": [5]},
        {"endpoint": "https://evil.example"},
        {"proxy": "http://evil.example:3128"},
    ],
)
def test_nor_to_a_mirror_an_endpoint_or_a_proxy_that_the_client_names(options: dict[str, Any]) -> None:
    with pytest.raises(CredentialNotAllowed):
        with_credential(request(options={"credential": "site", **options}), stored("data.example"))


def test_what_the_credential_itself_names_is_the_operators(sealer: Sealer) -> None:
    own = {"proxy": "http://proxy.example:3128", "endpoint": "https://minio.example"}
    asked = request(options={"credential": "site", "proxy": "http://evil.example", "endpoint": "https://evil.example"})
    assert with_credential(asked, stored("data.example", **own)).options == own | {"password": SECRET}
    bucket = request(url="s3://bucket/key", options={"credential": "site"})
    assert with_credential(bucket, stored("minio.example", **own)).options["endpoint"] == own["endpoint"]


@pytest.mark.parametrize("name", ["UPPER", "a_b", "-a", "a/b", "a" * 64, 5, ["a"], "ä", "a\n"])
def test_a_credentials_name_is_checked(name: object) -> None:
    with pytest.raises(InvalidRequest) as caught:
        credential_name({"credential": name})
    assert list(caught.value.fields) == ["options.credential"]


def test_the_environment_holds_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"DM_CREDENTIAL_{variable_end('my-site2')}", SECRET)
    assert credential_name({"credential": "my-site2"}) == "my-site2"
    assert credential_name({"credential": ""}) is None
    assert {name: value.get_secret_value() for name, value in load_credentials().items()} == {"MY_SITE2": SECRET}
    assert SECRET not in repr(load_credentials()) + repr(load_settings())
    monkeypatch.setenv("DM_CREDENTIALS", "x")
    with pytest.raises(SettingsError, match="DM_CREDENTIALS: unknown setting"):
        load_settings()
