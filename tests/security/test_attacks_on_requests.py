"""Attacks by requests: each is refused, nothing outside of a machine's directory is touched, and the catalogue keeps
what it had. Each test names the class of its attack (CWE); docs/reference/attacks.md lists them all.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import requests

from tests.support.catalogue import migrated
from tests.support.live_api import LiveApi

Fields = dict[str, Any]


class Site:
    """An API of two groups: `fire` on the machine `here`, and `water` on `there`; who asks is a mover of `fire`."""

    def __init__(self, api: LiveApi, outside: Path) -> None:
        self.api, self.outside = api, outside
        self.admin = api.tokens.make("admin")
        self.mover = api.tokens.make("mover", groups=["fire"])
        self.own = self._object("own.bin", "fire", "here")
        self.foreign = self._object("foreign.bin", "water", "there")

    def _object(self, name: str, group: str, machine: str) -> str:
        self.api.write(name, machine=machine)
        fields = {"machine": machine, "path": "", "filename": name, "group": group}
        return self.api.ask("PUT", "/DM/register", json=fields, token=self.admin).text

    def ask(self, method: str, path: str, fields: Fields | None = None, **options: Any) -> requests.Response:
        """Send a request as the mover of `fire`, unless `token` says as whom."""
        return self.api.ask(method, path, json=fields, **{"token": self.mover, **options})

    def register(self, **fields: Any) -> requests.Response:
        """Register a file of `here`."""
        wanted = {"machine": "here", "path": "", "filename": "secret.bin", "group": "fire", **fields}
        return self.ask("PUT", "/DM/register", wanted)

    def copy(self, **fields: Any) -> requests.Response:
        """Copy one's own object."""
        wanted = {"machine": "here", "dest": f"copies/{uuid4()}", **fields}
        return self.ask("POST", f"/DM/async/copy/{self.own}", wanted)

    def state(self) -> tuple[Any, ...]:
        """Return what an attack might change: all objects, all tasks, and the files outside."""
        objects = self.ask("GET", "/DM/info", token=self.admin).json()
        tasks = self.ask("GET", "/DM/async/status", token=self.admin).json()
        files = {str(path): path.read_bytes() for path in self.outside.rglob("*") if path.is_file()}
        return objects, tasks, files


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("attacked")
    outside = folder / "outside"
    outside.mkdir()
    (outside / "secret.bin").write_bytes(b"secret")
    with LiveApi(folder / "site", migrated(f"sqlite+pysqlite:///{folder}/catalogue.db"), auth="required") as api:
        for name in ("here", "there"):
            (api.folders[name] / "link").symlink_to(outside)
        yield Site(api, outside)


@pytest.fixture
def site(shared: Site) -> Iterator[Site]:
    """The site; after each attack it is as it was."""
    before = shared.state()
    yield shared
    assert shared.state() == before


def assert_refused(answer: requests.Response, *codes: str) -> None:
    assert 400 <= answer.status_code < 500 or answer.status_code == 501, answer.text
    assert not codes or answer.json()["code"] in codes, answer.text
    assert b"secret-key" not in answer.content
    assert b"Traceback" not in answer.content


@pytest.mark.parametrize("path", ["..", "../outside", "a/../../outside", "/etc", "./../outside", "..//outside"])
def test_path_does_not_leave_the_directory(site: Site, path: str) -> None:
    """CWE-22: path traversal."""
    assert_refused(site.register(path=path), "path_not_allowed", "invalid_request")
    assert_refused(site.copy(dest=f"{path}/copy.bin"), "path_not_allowed", "invalid_request")
    tree = {"machine": "here", "path": path, "group": "fire"}
    assert_refused(site.ask("POST", "/DM/register/tree", tree), "path_not_allowed", "invalid_request")


@pytest.mark.parametrize("path", ["link", "link/.", "link/../link"])
def test_link_does_not_leave_the_directory(site: Site, path: str) -> None:
    """CWE-59: a symbolic link that leads outside is followed."""
    assert_refused(site.register(path=path), "path_not_allowed", "invalid_request")
    tree = {"machine": "here", "path": path, "group": "fire"}
    assert_refused(site.ask("POST", "/DM/register/tree", tree), "path_not_allowed", "invalid_request")


@pytest.mark.parametrize("name", ["a\0b", "secret.bin\0.png", "\0"])
def test_nul_ends_no_name(site: Site, name: str) -> None:
    """CWE-158: a NUL byte cuts a name for the system that was whole for the check."""
    assert_refused(site.register(filename=name))
    assert_refused(site.copy(dest=name))


@pytest.mark.parametrize("name", ["a/b", "..", ".", "", "/"])
def test_file_name_is_one_name(site: Site, name: str) -> None:
    """CWE-73: a name of a file that names a place."""
    assert_refused(site.register(filename=name))


def test_place_of_a_scope_is_compared_whole(site: Site) -> None:
    """CWE-41: a path that is equivalent to a permitted one only by its letters."""
    scopes = ["write:objects!prefix=here:fire/", "read:objects", "transfers"]
    token = site.api.tokens.make(scopes=scopes, groups=["fire"])
    for name in ("firewater", "fire"):
        site.api.write(f"{name}/x.bin")
    for path in ("firewater", "fire/../firewater", "fire/../../here/firewater", "Fire", ""):
        fields = {"machine": "here", "path": path, "filename": "x.bin", "group": "fire"}
        assert_refused(site.ask("PUT", "/DM/register", fields, token=token))


INJECTIONS = ["' OR 1=1 --", "'; DROP TABLE objects; --", '" OR ""="', "x') UNION SELECT 1,2,3 --", "\\", "%", "_%"]


@pytest.mark.parametrize("text", INJECTIONS)
@pytest.mark.parametrize("name", ["group", "machine", "filename", "path", "originator", "metadata.a", "sort", "cursor"])
def test_filter_is_data(site: Site, name: str, text: str) -> None:
    """CWE-89: SQL in the filters of a list."""
    answer = site.ask("GET", "/DM/info", params={name: text})
    assert answer.status_code in (200, 422), answer.text
    assert site.foreign not in answer.text
    assert answer.status_code == 422 or answer.json() == []


@pytest.mark.parametrize("text", ["x\r\nSet-Cookie: dm=1", "x\nX-Injected: 1", "x\r\n\r\n<html>"])
def test_answers_have_no_line_of_a_client(site: Site, text: str) -> None:
    """CWE-113: a header that a client's text makes."""
    for answer in (
        site.ask("GET", f"/DM/info/{requests.utils.quote(text)}"),  # type: ignore[attr-defined]
        site.ask("GET", "/DM/info", params={"cursor": text}),
        site.ask("GET", "/login", params={"next": text}, allow_redirects=False),
    ):
        assert "X-Injected" not in answer.headers
        assert "dm=1" not in answer.headers.get("Set-Cookie", "")


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "localhost", "localhost.", "2130706433", "0x7f000001", "0177.0.0.1", "127.1", "0.0.0.0"),
        *("[::1]", "[::ffff:127.0.0.1]", "[::]", "127.0.0.1.nip.io@127.0.0.1"),
    ],
)
def test_download_reaches_no_service_of_this_host(site: Site, host: str) -> None:
    """CWE-918: the service asks what only it can reach."""
    with closing(socket.create_server(("127.0.0.1", 0))) as inner:
        inner.settimeout(0)
        url = f"http://{host}:{inner.getsockname()[1]}/x"
        fields = {"machine": "here", "path": "fetched", "filename": "x", "group": "fire", "url": url}
        assert_refused(site.ask("PUT", "/DM/async/getexternal", fields), "url_not_allowed", "invalid_request")
        with pytest.raises(BlockingIOError):
            inner.accept()


@pytest.mark.parametrize(
    "url",
    [
        *(
            "http://169.254.169.254/latest/meta-data/",
            "http://[fd00:ec2::254]/",
            "http://10.0.0.1/",
            "http://100.64.0.1/",
        ),
        *("file:///etc/passwd", "gopher://127.0.0.1:6379/_INFO", "dict://127.0.0.1:11211/", "jar:http://a!/", "//a/b"),
    ],
)
def test_download_is_of_a_public_address_by_a_known_protocol(site: Site, url: str) -> None:
    """CWE-918: addresses of a cloud's metadata, private networks, and other schemes."""
    fields = {"machine": "here", "path": "fetched", "filename": "x", "group": "fire", "url": url}
    assert_refused(site.ask("PUT", "/DM/async/getexternal", fields))


def test_identifier_of_a_foreign_object_opens_nothing(site: Site) -> None:
    """CWE-639: who knows an identifier has what it names."""
    place = {"machine": "here", "dest": "stolen.bin"}
    for method, path, fields in (
        ("GET", f"/DM/info/{site.foreign}", None),
        ("POST", f"/DM/async/copy/{site.foreign}", place),
        ("POST", f"/DM/async/move/{site.foreign}", place),
        ("DELETE", f"/DM/delete/{site.foreign}", {}),
        ("PUT", f"/DM/objects/{site.foreign}/hold", {"reason": "mine"}),
        ("PUT", f"/DM/objects/{site.foreign}/lifetime", {"lifetime": "1s"}),
    ):
        answer = site.ask(method, path, fields, headers={"Prefer": "respond-async"})
        assert_refused(answer, "object_not_found", "not_allowed")


def test_group_of_a_request_is_one_of_ones_own(site: Site) -> None:
    """CWE-863: what is one's own is given to, or taken into, a foreign group."""
    site.api.write("mine.bin")
    assert_refused(site.register(filename="mine.bin", group="water"), "not_allowed")
    twice = b'{"machine": "here", "path": "", "filename": "mine.bin", "group": "fire", "group": "water"}'
    answer = site.api.ask(
        "PUT", "/DM/register", data=twice, headers={"Content-Type": "application/json"}, token=site.mover
    )
    assert_refused(answer)


@pytest.mark.parametrize("field", ["uuid", "created_by", "acted_as", "status", "checksum_verified", "registered"])
def test_fields_of_the_service_are_not_a_clients(site: Site, field: str) -> None:
    """CWE-915: a request sets what only the service may set."""
    site.api.write("mine.bin")
    assert_refused(site.register(filename="mine.bin", **{field: "token:admin"}), "invalid_request")


@pytest.mark.parametrize("size", [2**63, 2**64, -1, 10**30, 1.5, "9" * 400])
def test_numbers_have_bounds(site: Site, size: object) -> None:
    """CWE-190: a number that wraps around in the database or on a machine."""
    site.api.write("mine.bin")
    assert_refused(site.register(filename="mine.bin", size=size))
    assert_refused(site.copy(bandwidth=size))


@pytest.mark.parametrize(
    "header",
    ["X-Forwarded-User", "Remote-User", "X-Remote-User", "X-Auth-Request-Email", "X-Original-URL", "Forwarded"],
)
def test_header_makes_nobody_of_a_stranger(site: Site, header: str) -> None:
    """CWE-290: a header that only a proxy may set."""
    answer = site.ask("GET", "/DM/info", headers={header: "admin", "X-Forwarded-For": "127.0.0.1"}, token=None)
    assert_refused(answer, "not_authenticated")


def test_token_is_not_taken_from_the_address(site: Site) -> None:
    """CWE-598: a token that lands in logs and histories."""
    for name in ("access_token", "token", "Authorization"):
        assert_refused(site.ask("GET", "/DM/info", params={name: site.admin}, token=None), "not_authenticated")


@pytest.mark.parametrize("header", ["X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"])
def test_method_is_that_of_the_request(site: Site, header: str) -> None:
    """CWE-650: a request that reads is made one that writes."""
    for method in ("GET", "POST"):
        site.ask(method, f"/DM/info/{site.own}", headers={header: "DELETE"}, params={"_method": "DELETE"})


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/xml", b'<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>'),
        ("application/x-python-pickle", b"cposix\nsystem\n(S'touch pwned'\ntR."),
        ("application/yaml", b"!!python/object/apply:os.system ['touch pwned']"),
    ],
)
def test_body_of_another_kind_is_not_read(site: Site, kind: str, body: bytes) -> None:
    """CWE-502, CWE-611: a body that is code, or names files, to whoever parses it."""
    answer = site.api.ask("PUT", "/DM/register", data=body, headers={"Content-Type": kind}, token=site.mover)
    assert_refused(answer)
    assert b"root:" not in answer.content


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1.evil.example"])
def test_page_of_another_site_changes_nothing(site: Site, origin: str) -> None:
    """CWE-352: a browser sends what a foreign page wants."""
    fields = {"machine": "here", "dest": "stolen.bin"}
    answer = site.ask("POST", f"/DM/async/copy/{site.own}", fields, headers={"Origin": origin})
    assert_refused(answer, "origin_not_allowed")
    assert "Access-Control-Allow-Origin" not in answer.headers


def test_name_that_was_pointed_at_this_host_is_refused(site: Site) -> None:
    """CWE-350: a page's own name leads to the service's address (DNS rebinding)."""
    for host in ("evil.example", "127.0.0.1.evil.example", "localhost.evil.example"):
        assert_refused(site.ask("GET", "/DM/info", headers={"Host": host}), "origin_not_allowed")


def test_one_request_is_not_two(site: Site) -> None:
    """CWE-444: what a proxy takes for a body is a request here."""
    second = f"DELETE /DM/delete/{site.own} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {site.admin}\r\n\r\n"
    first = (
        "PUT /DM/register HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(second) + 5}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", site.api.settings.port), 60) as client:
        client.sendall((first + second).encode())
        answered = b"".join(iter(lambda: client.recv(65536), b""))
    assert answered.count(b"HTTP/1.1 ") == 1
    assert b"HTTP/1.1 4" in answered


def test_text_of_a_client_is_no_page(site: Site) -> None:
    """CWE-79: a script in a name is run by the browser of who looks at it."""
    script = "<script>alert(1)</script>"
    for path in (f"/DM/info/{script}", f"/problems/{script}", f"/{script}"):
        answer = site.ask("GET", path)
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "text/html" not in answer.headers["Content-Type"] or script not in answer.text
    assert json.loads(site.ask("GET", "/DM/info", params={"filename": script}).text) == []
