"""Each flaw that was measured on the original server is proved not to be here."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.site import PATIENCE, SEED_FIELDS, Site, some_bytes
from tests.support.web import OddServer, Web, redirect

HOSTILE = [
    "$(touch pwned)",
    "`touch pwned`",
    "; touch pwned;",
    "a'b\"c",
    "-rf",
    "--help",
    " blanks at  both ends ",
    "new\nline",
    "ünïcödé ☃",
    "%s%n",
    "*?[x]",
    "back\\slash",
    "|&<>!#~",
    "x" * 255,
]


@pytest.mark.slow
def test_no_name_is_ever_a_command_and_none_breaks(site: Site) -> None:
    content = {name: some_bytes(5000) for name in HOSTILE}
    sources = {name: site.register("archer2", f"hostile dir/{name}", data) for name, data in content.items()}
    # to another machine, and on one machine: that is a server-side copy, which is where a shell would be
    places = {"cirrus": "to $(touch pwned)", "archer2": "again; touch pwned"}
    tasks = {
        (name, machine): site.ask("POST", f"async/copy/{source}", json={"machine": machine, "dest": f"{folder}/{name}"})
        for name, source in sources.items()
        for machine, folder in places.items()
    }
    copies = []
    for (name, machine), answer in tasks.items():
        status = site.wait(answer.text)
        assert status["status"] == "COMPLETE", (name, status)
        assert site.read(machine, f"{places[machine]}/{name}") == content[name]
        copies.append(status["result"])
    with ThreadPoolExecutor(8) as pool:
        deleted = pool.map(lambda uuid: site.ask("DELETE", f"delete/{uuid}").status_code, [*sources.values(), *copies])
        assert set(deleted) == {200}
    written = [site.folders["archer2"] / "hostile dir", *(site.folders[one] / folder for one, folder in places.items())]
    assert not [file for folder in written for file in folder.rglob("*") if file.is_file()]
    assert not [file for folder in site.folders.values() for file in folder.rglob("pwned")]


@pytest.mark.parametrize("url", ["file:///etc/passwd", "FILE:///etc/passwd", "http://127.0.0.1:1/x", "gopher://x/"])
def test_a_url_that_is_no_download_is_refused(site: Site, url: str) -> None:
    form = {"filename": "p", "path": "refused", "machine": "archer2", "size": "", "url": url, "protocol": "http"}
    answer = site.ask("PUT", "getexternal", data={**SEED_FIELDS, **form, "options": "{}"})
    assert (answer.status_code, answer.json()["code"]) == (422, "url_not_allowed")
    assert not site.exists("archer2", "refused/p")


def test_a_redirect_is_followed_and_checked_again(site: Site, web: Web, odd_server: OddServer) -> None:
    target = web.put("redirected.bin", b"the real bytes")
    form = {"path": "redirects", "machine": "cirrus", "protocol": "http", **SEED_FIELDS}
    # the tests' web server is allowed, the odd one is not: a redirect from the one to the other must not be followed
    inward = odd_server.on("/secret", redirect(target))
    refused = site.ask("PUT", "getexternal", data=form | {"filename": "no", "url": inward})
    assert (refused.status_code, refused.json()["code"]) == (422, "url_not_allowed")
    assert not odd_server.requests
    (web.root / "folder").mkdir(exist_ok=True)
    (web.root / "folder/index.html").write_bytes(b"an index")
    # nginx redirects /folder to /folder/
    got = site.ask("PUT", "getexternal", data=form | {"filename": "yes", "url": f"{web.url}/folder"})
    assert got.status_code == 201, got.text
    assert site.read("cirrus", "redirects/yes") == b"an index"


def test_bad_requests_do_not_stop_the_movers(site: Site) -> None:
    data = some_bytes(100)
    source = site.register("archer2", "worker/a.bin", data)
    unknown = site.ask("POST", f"async/copy/{source}", data={"machine": "nowhere", "dest": "x"})
    assert (unknown.status_code, unknown.json()["code"]) == (422, "unknown_machine")
    form = {"filename": "f", "machine": "cirrus", "url": "http://example.org/", "protocol": "http", **SEED_FIELDS}
    options = site.ask("PUT", "async/getexternal", data=form | {"options": '{"user": "x"}'})
    assert (options.status_code, options.json()["code"]) == (422, "invalid_request")
    after = site.ask("POST", f"async/copy/{source}", data={"machine": "cirrus", "dest": "worker/b.bin"})
    assert site.wait(after.text)["status"] == "COMPLETE"


@pytest.mark.dialect
def test_two_copies_to_one_destination(site: Site) -> None:
    sources = [site.register("archer2", f"race/{number}.bin", some_bytes(200_000)) for number in range(2)]
    together = threading.Barrier(2)

    def copy(source: str) -> tuple[str, str]:
        together.wait()
        answer = site.ask("POST", f"async/copy/{source}", data={"machine": "cirrus", "dest": "race/one.bin"})
        if answer.status_code != 200:
            assert answer.status_code == 409
            return "ERROR", answer.json()["code"]
        status = site.wait(answer.text)
        return status["status"], (status["error"] or {}).get("code", "")

    with ThreadPoolExecutor(2) as pool:
        ends = sorted(pool.map(copy, sources))
    assert ends == [("COMPLETE", ""), ("ERROR", "destination_exists")]


@pytest.mark.dialect
def test_identical_registrations_at_once_give_one_row(site: Site) -> None:
    site.write("archer2", "once/a.bin", b"x")
    form = {"filename": "a.bin", "path": "once", "machine": "archer2", "size": "1", **SEED_FIELDS}
    together = threading.Barrier(16)

    def register(_: int) -> int:
        together.wait()
        return site.ask("PUT", "register", data=form).status_code

    with ThreadPoolExecutor(16) as pool:
        assert sorted(pool.map(register, range(16))) == [201] + [409] * 15


@pytest.mark.dialect
def test_objects_over_2_gib_can_be_registered(site: Site) -> None:
    file = site.write("archer2", "big/sparse.bin", b"")
    size = 5 * 2**30 + 1
    with file.open("r+b") as sparse:
        sparse.truncate(size)
    uuid = site.register("archer2", "big/sparse.bin")
    assert site.info(uuid)["size"] == size
    unseen = site.ask(
        "PUT",
        "register",
        data={"filename": "huge", "path": "big", "machine": "archer2", "size": str(2**63 - 1), "verify": "none"},
    )
    assert site.info(unseen.text)["size"] == 2**63 - 1


def test_an_unregistered_file_is_not_overwritten_unless_asked(site: Site) -> None:
    source = site.register("archer2", "over/a.bin", b"new")
    site.write("cirrus", "over/b.bin", b"precious")
    dest = {"machine": "cirrus", "dest": "over/b.bin"}
    for verb in ("copy", "move"):
        refused = site.ask("POST", f"{verb}/{source}", data=dest)
        assert (refused.status_code, refused.json()["code"]) == (409, "destination_exists")
        assert site.read("cirrus", "over/b.bin") == b"precious"
    assert site.exists("archer2", "over/a.bin")
    answer = site.ask("POST", f"copy/{source}", data={**dest, "overwrite": "true"})
    assert answer.status_code == 201, answer.text
    assert site.read("cirrus", "over/b.bin") == b"new"
    # a registered object is never overwritten, asked or not
    registered = site.ask("POST", f"copy/{source}", data={**dest, "overwrite": "true"})
    assert (registered.status_code, registered.json()["code"]) == (409, "destination_exists")


def test_missing_source_changes_nothing(site: Site) -> None:
    source = site.register("archer2", "missing/a.bin", b"x")
    (site.folders["archer2"] / "missing/a.bin").unlink()
    for verb in ("copy", "move"):
        answer = site.ask("POST", f"{verb}/{source}", data={"machine": "cirrus", "dest": "missing/b.bin"})
        assert (answer.status_code, answer.json()["code"]) == (409, "source_missing")
    assert site.info(source)["machine"] == "archer2"
    assert not site.exists("cirrus", "missing/b.bin")


def test_paths_that_lead_out_are_refused(site: Site) -> None:
    outside = site.folders["archer2"].parent / "outside"
    outside.mkdir(exist_ok=True)
    (outside / "secret").write_bytes(b"secret")
    (site.folders["archer2"] / "link").symlink_to(outside)
    source = site.register("archer2", "out/a.bin", b"x")
    for dest in ("../outside/x", "link/x", "/etc/x", "a/../../x", "link/../x"):
        answer = site.ask("POST", f"copy/{source}", data={"machine": "archer2", "dest": dest})
        assert (answer.status_code, answer.json()["code"]) == (422, "path_not_allowed"), dest
    form = {"filename": "secret", "path": "link", "machine": "archer2", "size": "6", **SEED_FIELDS}
    answer = site.ask("PUT", "register", data=form)
    assert (answer.status_code, answer.json()["code"]) == (422, "path_not_allowed")
    assert sorted(file.name for file in outside.iterdir()) == ["secret"]


@pytest.mark.dialect
def test_a_killed_mover_loses_nothing(site: Site) -> None:
    data = some_bytes(120_000_000)
    source = site.register("archer2", "killed/a.bin", data)
    task = site.ask("POST", f"async/move/{source}", data={"machine": "cirrus", "dest": "killed/b.bin"}).text
    deadline = time.monotonic() + PATIENCE
    while site.status(task)["status"] == "QUEUED" and time.monotonic() < deadline:
        time.sleep(0.01)
    site.service.kill_mover()
    site.service.start_movers()
    status = site.wait(task)
    assert status["status"] == "COMPLETE", status
    assert site.read("cirrus", "killed/b.bin") == data
    assert not site.exists("archer2", "killed/a.bin")
    assert not site.leftovers()


@pytest.mark.dialect
def test_a_registered_object_is_not_overwritten_through_a_linked_directory(site: Site) -> None:
    precious = site.register("cirrus", "real/x.bin", b"precious")
    (site.folders["cirrus"] / "alias").symlink_to("real")
    other = site.register("archer2", "linked/other.bin", b"other")
    dest = {"machine": "cirrus", "dest": "alias/x.bin", "overwrite": "true"}
    for verb in ("copy", "move"):
        answer = site.ask("POST", f"{verb}/{other}", data=dest)
        assert (answer.status_code, answer.json()["code"]) == (409, "destination_exists")
    onto_itself = site.ask("POST", f"move/{precious}", data=dest)
    assert (onto_itself.status_code, onto_itself.json()["code"]) == (409, "destination_exists")
    assert site.read("cirrus", "real/x.bin") == b"precious"
    form = {"filename": "x.bin", "path": "alias", "machine": "cirrus", "size": "8", **SEED_FIELDS}
    assert site.ask("PUT", "register", data=form).status_code == 409  # one file, one object
    # a free name there is fine, and is then held by both its names
    copied = site.ask("POST", f"copy/{other}", data=dest | {"dest": "alias/y.bin"})
    assert copied.status_code == 201, copied.text
    again = site.ask("POST", f"copy/{other}", data=dest | {"dest": "real/y.bin"})
    assert (again.status_code, again.json()["code"]) == (409, "destination_exists")
    assert site.ask("DELETE", f"delete/{copied.text}").status_code == 200
    assert site.ask("POST", f"copy/{other}", data=dest | {"dest": "real/y.bin"}).status_code == 201
