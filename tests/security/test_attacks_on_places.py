"""Attacks by what a request calls a place, a machine or a file. Each is refused, and no row and no byte changes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import pytest
from pydantic import ValidationError

from datamanager.machines import Machine, TransportKind
from tests.support.attacked import Attacked

OUTSIDE = {
    "parent": "../there",
    "parent later": "mine/../../there",
    "parent of the file": "mine/..",
    "absolute": "/etc",
    "absolute that begins like base_dir": "{base}-there",
    "absolute with a parent": "{base}/../there",
    "NUL": "mine\0/../../etc",
    "lone surrogate": "mine/\udcff",
    "long name": "n" * 256,
    "long path": "/".join(["n" * 200] * 30),
}
NOT_OUTSIDE = {
    "percent": "%2e%2e/there",
    "percent twice": "%252e%252e/there",
    "overlong UTF-8": "%c0%ae%c0%ae/there",
    "backslashes": "..\\..\\there",
    "full-width dots": "\uff0e\uff0e/there",
    "one dot leader": "\u2024\u2024/there",
    "three dots": ".../there",
    "tilde": "~root",
    "variable": "$HOME",
}
"""What is nothing but an odd name: nobody takes it for another one."""


def asked_with(victim: Attacked, path: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield a request to each endpoint that takes a place, with this one."""
    file = {"machine": "here", "path": path, "filename": "secret.bin", "group": "fire"}
    to = {"machine": "here", "dest": f"{path}/secret.bin"}
    url = {"url": "http://127.0.0.1:9/x"}
    yield "PUT", "/DM/register", file
    yield "PUT", "/DM/register", {**file, "verify": "none"}
    yield "POST", "/DM/register/tree", {"machine": "here", "path": path, "group": "fire"}
    for verb in ("copy", "move"):
        yield "POST", f"/DM/async/{verb}/{victim.theirs}", to
    yield "PUT", "/DM/async/getexternal", {**file, **url}
    yield "POST", "/DM/schedules", {**file, **url, "filename": "{date:%Y%m%d%H}", "interval": "6h"}


@pytest.mark.attack(cwe=22, title="A path leads out of the base directory, at each endpoint that takes one")
@pytest.mark.parametrize("case", OUTSIDE)
def test_path_that_leads_out_is_refused(victim: Attacked, case: str) -> None:
    path = OUTSIDE[case].replace("{base}", str(victim.api.folders["here"]))
    with victim.untouched():
        for method, address, fields in asked_with(victim, path):
            answer = victim.ask(method, address, json=fields, token=victim.admin)
            assert answer.status_code == 422, (address, answer.text)
            assert answer.json()["code"] in ("path_not_allowed", "invalid_request"), (address, answer.text)


@pytest.mark.attack(cwe=22, title="A path leads out of the base directory, in an item of a batch")
@pytest.mark.parametrize("verb", ["copy", "move"])
def test_item_that_leads_out_is_refused(victim: Attacked, verb: str) -> None:
    base = str(victim.api.folders["here"])
    paths = [path.replace("{base}", base) for case, path in OUTSIDE.items() if case not in ("NUL", "lone surrogate")]
    items = [{"uuid": victim.theirs, "machine": "here", "dest": f"{path}/secret.bin"} for path in paths]
    with victim.untouched("objects", "claims", "files"):
        answer = victim.ask("POST", f"/DM/async/{verb}", json={"items": items}, token=victim.admin)
        assert answer.status_code == 202, answer.text
        task = answer.json()["task"]
        ended = victim.ask("GET", f"/DM/async/status/{task}/items", token=victim.admin).json()
        assert {(one["status"], one["error"]["code"]) for one in ended} == {("ERROR", "path_not_allowed")}, ended


@pytest.mark.attack(cwe=22, title="A file's name has slashes or is a directory's")
@pytest.mark.parametrize("name", ["../secret.bin", "a/../../x", "/etc/passwd", ".", "..", "a\0b", "x.dmpart"])
def test_name_that_is_a_path_is_refused(victim: Attacked, name: str) -> None:
    victim.api.write("theirs/x.dmpart")
    with victim.untouched():
        for method, address, fields in asked_with(victim, "theirs"):
            if "filename" not in fields or "schedules" in address:
                continue
            answer = victim.ask(method, address, json={**fields, "filename": name}, token=victim.admin)
            assert answer.status_code == 422, (address, answer.text)


@pytest.mark.attack(cwe=176, title="Encodings and letters that look like `..` stand for it")
@pytest.mark.parametrize("case", NOT_OUTSIDE)
def test_odd_name_is_nothing_but_a_name(victim: Attacked, case: str) -> None:
    (victim.api.folders["there"] / "secret.bin").write_bytes(b"outside")
    path = NOT_OUTSIDE[case]
    fields = {"machine": "here", "path": path, "filename": "secret.bin", "group": "fire"}
    with victim.untouched():
        answer = victim.ask("PUT", "/DM/register", json=fields)
        assert (answer.status_code, answer.json()["code"]) == (409, "source_missing"), answer.text
        tree = victim.ask("POST", "/DM/register/tree", json={"machine": "here", "path": path})
        assert tree.status_code in (403, 409, 422), tree.text


@pytest.mark.attack(cwe=59, title="Links below the base directory lead out of it")
def test_link_that_leads_out_is_refused(victim: Attacked) -> None:
    here = victim.api.folders["here"]
    (here / "out").symlink_to(victim.api.folders["there"])
    (here / "passwd").symlink_to("/etc/passwd")
    (here / "chain").symlink_to("out")
    try:
        with victim.untouched():
            for path, name in (("out", "secret.bin"), ("chain", "x"), ("", "passwd")):
                for verify in ("stat", "hash", "none"):
                    fields = {"machine": "here", "path": path, "filename": name, "group": "fire", "verify": verify}
                    answer = victim.ask("PUT", "/DM/register", json=fields)
                    assert (answer.status_code, answer.json()["code"]) == (422, "path_not_allowed"), answer.text
            for path in ("out", "chain"):
                answer = victim.ask(
                    "POST", "/DM/register/tree", json={"machine": "here", "path": path}, token=victim.admin
                )
                assert (answer.status_code, answer.json()["code"]) == (422, "path_not_allowed"), answer.text
    finally:
        for name in ("out", "passwd", "chain"):
            (here / name).unlink()


@pytest.mark.attack(cwe=88, title="A machine's host, login or name is an option of ssh")
@pytest.mark.parametrize("key", ["name", "host", "direct_host", "username", "service_login"])
@pytest.mark.parametrize("value", ["-oProxyCommand=id", "--", "a b", "x\0y", "h\n-oProxyCommand=id", ""])
def test_machine_that_is_an_option_is_refused(victim: Attacked, key: str, value: str) -> None:
    fields = {"name": "far", "transport": TransportKind.SFTP, "base_dir": "/d", "host": "far.example", key: value}
    with pytest.raises(ValidationError):
        Machine.model_validate(fields)
    with victim.untouched():
        request = {"machine": value, "path": "", "filename": "x", "group": "fire"}
        for method, address in (("PUT", "/DM/register"), ("PUT", "/DM/async/getexternal")):
            answer = victim.ask(method, address, json={**request, "url": "http://127.0.0.1:9/"}, token=victim.admin)
            assert answer.status_code == 422, answer.text
        answer = victim.ask("POST", f"/DM/machines/{quote(value, safe='')}/drain", token=victim.admin)
        assert answer.status_code in (404, 405, 422), answer.text


@pytest.mark.attack(cwe=155, title="A directory of a scope is a pattern, or the beginning of another one's name")
@pytest.mark.parametrize("prefix", ["the", "theirs.", "t%25", "the_rs", "th*", "THEIRS", "theirs/secret", "[t]heirs"])
def test_prefix_is_no_pattern(victim: Attacked, prefix: str) -> None:
    actions = ("list:objects", "read:objects", "write:objects", "transfers", "delete:objects", "archive")
    token = victim.api.tokens.make(groups=["fire"], scopes=[f"{one}!prefix=here:{prefix}/" for one in actions])
    with victim.untouched():
        assert victim.ask("GET", "/DM/info", token=token).json() == []
        for method, address in (("GET", "info"), ("DELETE", "delete"), ("POST", "async/archive")):
            assert victim.ask(method, f"/DM/{address}/{victim.theirs}", token=token).status_code == 404
        copy = {"machine": "here", "dest": f"{prefix}/{uuid4().hex}"}
        assert victim.ask("POST", f"/DM/async/copy/{victim.theirs}", json=copy, token=token).status_code == 404


@pytest.mark.attack(cwe=1336, title="A template of a schedule reaches into the service's own objects")
@pytest.mark.parametrize(
    "template",
    [
        "{date.__class__}",
        "{0.__init__.__globals__}",
        "{date!r:%Y}",
        "{date:{date:%Y}}",
        "{{date}}",
        "{config}",
        "{date:%99999999d}",
        "{date:%s}",
        "{date+999999w:%Y}",
        "%(date)s{date:",
    ],
)
def test_template_is_of_times_alone(victim: Attacked, template: str) -> None:
    fields = {"machine": "here", "path": "in", "group": "fire", "url": "http://127.0.0.1:9/{date:%Y}", "interval": "6h"}
    with victim.untouched():
        for changed in (
            {"filename": template},
            {"filename": "{date:%Y%m%d%H}", "url": f"http://127.0.0.1:9/{template}"},
        ):
            answer = victim.ask("POST", "/DM/schedules", json={**fields, **changed})
            assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request"), answer.text
