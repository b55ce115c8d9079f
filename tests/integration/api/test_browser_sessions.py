"""Sessions of browsers: logged in at a real issuer or by a token, known by a cookie, ended at once.

Each attack names its class (CWE).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import pytest
import requests

from models.access.tokens import readmit_person, withdraw_person
from tests.support.browser import Browser
from tests.support.catalogue import empty_catalogue
from tests.support.live_api import LiveApi
from tests.support.oidc_login import CLIENT, RULES, LoginIssuer
from tests.support.site import eventually


@pytest.fixture(scope="module")
def running() -> Iterator[LoginIssuer]:
    with LoginIssuer() as one:
        yield one


@pytest.fixture
def issuer(running: LoginIssuer) -> LoginIssuer:
    """The issuer, at which nobody has logged in yet."""
    running.changes = {}
    running.redeemed.clear()
    return running


@pytest.fixture(scope="module")
def api(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, running: LoginIssuer
) -> Iterator[LiveApi]:
    """An API that requires to know who asks; people log in at the issuer."""
    folder = tmp_path_factory.mktemp("sessions")
    rules = folder / "identity.toml"
    rules.write_text(RULES)
    with (
        empty_catalogue(request, "sqlite", folder) as url,
        LiveApi(folder / "site", url, auth="required", identity=rules, **running.settings) as live,
    ):
        yield live


class Person(requests.Session):
    """A browser of requests: it keeps cookies and follows redirects, and sends what its page's script would."""

    def __init__(self, api: LiveApi) -> None:
        super().__init__()
        self.trust_env = False
        self.base = api.url

    def ask(self, method: str, path: str, **options: Any) -> requests.Response:
        """Send a request to the API."""
        return self.request(method, self.base + path, timeout=60, **options)

    def log_in(self) -> requests.Response:
        """Go to the issuer and come back."""
        return self.ask("GET", "/login/start?next=/docs")

    def log_in_with(self, token: str) -> requests.Response:
        """Paste a service token."""
        return self.ask("POST", "/login", data={"token": token, "next": "/docs"}, allow_redirects=False)

    @property
    def csrf(self) -> dict[str, str]:
        """The header of requests to change something."""
        return {"X-CSRF-Token": self.ask("GET", "/login/session").json()["csrf_token"]}

    @property
    def cookie(self) -> str:
        """The session's cookie."""
        return str(self.cookies["dm_session"])


def register(person: Person, api: LiveApi, **options: Any) -> requests.Response:
    name = uuid4().hex
    api.write(name)
    form = {"machine": "here", "path": "", "filename": name, "group": "fire"}
    return person.ask("PUT", "/DM/register", data=form, **options)


def test_person_logs_in_at_the_issuer(api: LiveApi, issuer: LoginIssuer) -> None:
    person = Person(api)
    assert person.ask("GET", "/DM/info").status_code == 401
    page = person.log_in()
    assert (page.status_code, page.headers["Referrer-Policy"]) == (200, "no-referrer")
    assert 'http-equiv="refresh" content="0; url=/docs"' in page.text
    who = person.ask("GET", "/DM/whoami").json()
    assert (who["person"], who["means"], who["groups"]) == ("jo", "session", ["fire"])
    found = register(person, api, headers=person.csrf)
    assert found.status_code == 201, found.text
    (sent,) = issuer.redeemed
    assert len(sent["code_verifier"]) >= 43


def test_person_pastes_a_token_once(api: LiveApi, issuer: LoginIssuer) -> None:
    person, token = Person(api), api.tokens.make("mover", groups=["fire"], name="jo's")
    refused = person.log_in_with(token[:-1] + ("0" if token[-1] != "0" else "1"))
    assert refused.status_code == 401
    assert "checksum" in refused.text
    assert person.cookies.get("dm_session") is None
    answer = person.log_in_with(token)
    assert (answer.status_code, answer.headers["Location"]) == (303, "/docs")
    who = person.ask("GET", "/DM/whoami").json()
    # what is requested keeps the token's id: movers stop it once that is revoked
    assert (who["person"], who["means"], len(who["credential"])) == ("token:jo's", "token", 12)
    assert token not in person.cookie
    assert register(person, api, headers=person.csrf).status_code == 201


@pytest.mark.attack(cwe=1004, title="A script reads the session's cookie")
def test_cookie_is_for_no_script_and_no_other_site(api: LiveApi, issuer: LoginIssuer) -> None:
    """CWE-1004, CWE-1275."""
    answer = Person(api).log_in_with(api.tokens.make("reader"))
    attributes = {part.strip().lower() for part in answer.headers["Set-Cookie"].split(";")[1:]}
    assert {"httponly", "samesite=strict", "path=/", "max-age=28800"} == attributes  # by https also Secure: test_tls


@pytest.mark.attack(cwe=352, title="A page of another site writes with a person's session")
def test_write_needs_the_token_of_the_page(api: LiveApi, issuer: LoginIssuer) -> None:
    """CWE-352: a page below the same domain sends the cookie, and knows no token."""
    jo, kim = Person(api), Person(api)
    jo.log_in()
    kim.log_in()
    for headers in (
        {},
        {"X-CSRF-Token": ""},
        {"X-CSRF-Token": "é"},
        kim.csrf,
        {"X-CSRF-Token": jo.csrf["X-CSRF-Token"][:-1]},
    ):
        answer = register(jo, api, headers={name: value.encode() for name, value in headers.items()})
        assert (answer.status_code, answer.json()["code"]) == (403, "csrf_token_missing")
        assert jo.ask("POST", "/logout", headers={n: v.encode() for n, v in headers.items()}).status_code == 403
    assert register(jo, api, headers=jo.csrf).status_code == 201
    foreign = jo.ask("GET", "/login/session", headers={"Origin": "https://evil.example"})
    assert foreign.status_code == 403


def test_logout_ends_the_session_for_everybody_who_has_the_cookie(api: LiveApi, issuer: LoginIssuer) -> None:
    """CWE-613."""
    person, thief = Person(api), Person(api)
    person.log_in()
    thief.cookies.set("dm_session", person.cookie)
    assert thief.ask("GET", "/DM/info").status_code == 200
    assert person.ask("POST", "/logout", headers=person.csrf).status_code == 204
    assert person.cookies.get("dm_session") is None
    assert thief.ask("GET", "/DM/info").status_code == 401
    assert thief.ask("GET", "/login/session").status_code == 401


@pytest.mark.attack(cwe=613, title="A session's cookie is used after its time")
def test_session_expires(tmp_path: Path, migrated_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """CWE-613."""
    with LiveApi(tmp_path, migrated_url, auth="required", session=timedelta(minutes=5)) as api:
        person = Person(api)
        person.log_in_with(api.tokens.make("reader", groups=["fire"]))
        cookie = {"Cookie": f"dm_session={person.cookie}"}
        assert api.ask("GET", "/DM/info", headers=cookie).status_code == 200
        later = time.time() + 301
        monkeypatch.setattr("api.sessions.browser_session.time.time", lambda: later)
        assert api.ask("GET", "/DM/info", headers=cookie).status_code == 401


def test_revoked_token_ends_its_sessions(api: LiveApi, issuer: LoginIssuer) -> None:
    """CWE-613."""
    person = Person(api)
    admin = {"Authorization": f"Bearer {api.tokens.make('admin')}"}
    person.log_in_with(api.tokens.make("reader", groups=["fire"], name="lost"))
    token = person.ask("GET", "/DM/whoami").json()["credential"]
    assert api.ask("DELETE", f"/DM/tokens/{token}", headers=admin).ok
    assert person.ask("GET", "/DM/info").status_code == 401


def test_withdrawn_person_has_no_session_any_more(api: LiveApi, issuer: LoginIssuer) -> None:
    """CWE-613: what the issuer said at the login is not the last word."""
    person = Person(api)
    person.log_in()
    with api.database.write() as session:
        withdraw_person(session, "jo", None)
    answer = person.ask("GET", "/DM/info")
    assert (answer.status_code, answer.json()["code"]) == (403, "not_allowed")
    assert Person(api).log_in().status_code == 401
    with api.database.write() as session:
        readmit_person(session, "jo")
    assert person.ask("GET", "/DM/info").status_code == 200


@pytest.mark.attack(cwe=345, title="A login is finished with tokens, or a state, of another one")
@pytest.mark.parametrize(
    "changes",
    [
        {"callback": {"state": "another"}},  # CWE-352: a login that another browser has begun
        {"callback": {"iss": "https://evil.example"}},  # mix-up, RFC 9207
        {"callback": {"code": "guessed"}},
        {"callback": {"code": "", "error": "access_denied"}},
        {"id": {"nonce": "another"}},  # CWE-294: of another login
        {"id": {"nonce": None}},
        {"id": {"aud": "another-client"}},
        {"id": {"typ": "Bearer"}},  # an access token in its place
        {"id": {"sub": "4712"}},  # of another person
        {"id": {"exp": 1}},
        {"id": {"iss": "https://evil.example"}},
        {"access": {"aud": "another-service"}},
        {"access": {"exp": 1}},
        {"access": {"email": "jo@evil.example"}},  # a person whom no rule knows
        {"token": {"id_token": None}},
        {"token": {"access_token": "opaque"}},
        {"token": {"id_token": "a.b.c"}},
    ],
)
def test_answer_of_the_issuer_that_is_not_for_this_login_is_refused(
    api: LiveApi, issuer: LoginIssuer, changes: dict[str, dict[str, Any]]
) -> None:
    """CWE-287, CWE-345."""
    issuer.changes = changes
    person = Person(api)
    page = person.log_in()
    assert page.status_code == 401
    assert person.cookies.get("dm_session") is None
    assert person.ask("GET", "/DM/info").status_code == 401


@pytest.mark.attack(
    cwe=384, title="A victim's browser is logged in by an address that was sent to them; a code is used twice"
)
def test_code_is_worth_nothing_in_another_browser(api: LiveApi, issuer: LoginIssuer) -> None:
    """CWE-384, CWE-352: neither a code that somebody else got, nor an address that was sent to a victim, logs in."""
    begun, victim = Person(api), Person(api)
    start = begun.ask("GET", "/login/start", allow_redirects=False)
    answer = requests.get(start.headers["Location"], allow_redirects=False, timeout=60)
    assert victim.get(answer.headers["Location"], timeout=60).status_code == 401
    other = victim.ask("GET", "/login/start", allow_redirects=False)  # with a login of its own under way
    assert parse_qs(urlsplit(other.headers["Location"]).query)["client_id"] == [CLIENT]
    assert victim.get(answer.headers["Location"], timeout=60).status_code == 401
    assert issuer.redeemed == []  # the state is compared first
    assert begun.get(answer.headers["Location"], timeout=60).status_code == 200
    assert begun.get(answer.headers["Location"], timeout=60).status_code == 401  # once


@pytest.mark.attack(cwe=601, title="A login goes on to a page of another site")
@pytest.mark.parametrize(
    "target",
    ["https://evil.example/", "//evil.example", "/\\evil.example", "javascript:alert(1)", "/a\r\nX: y", "/<script>"],
)
def test_login_goes_on_to_our_own_pages_only(api: LiveApi, issuer: LoginIssuer, target: str) -> None:
    """CWE-601, CWE-79."""
    person, token = Person(api), api.tokens.make("reader")
    answer = person.ask("POST", "/login", data={"token": token, "next": target}, allow_redirects=False)
    assert answer.headers["Location"] == "/docs"
    page = person.ask("GET", "/login", params={"next": target})
    assert 'value="/docs"' in page.text
    assert "evil" not in page.text


@pytest.mark.attack(cwe=565, title="A session's cookie is made up or changed")
@pytest.mark.parametrize("value", ["", "x", "gAAAAA", "é", "0" * 5000])
def test_cookie_that_is_not_ours_is_none(api: LiveApi, value: str) -> None:
    """CWE-565."""
    answer = api.ask("GET", "/DM/info", headers={"Cookie": f"dm_session={value}".encode()})
    assert answer.status_code == 401


def test_cookie_of_a_login_is_no_session(api: LiveApi, issuer: LoginIssuer) -> None:
    """CWE-565."""
    person = Person(api)
    pending = person.ask("GET", "/login/start", allow_redirects=False).cookies["dm_login"]
    assert api.ask("GET", "/DM/info", headers={"Cookie": f"dm_session={pending}"}).status_code == 401


def test_bearer_token_goes_before_the_cookie(api: LiveApi, issuer: LoginIssuer) -> None:
    person = Person(api)
    person.log_in()
    headers = {"Authorization": f"Bearer {api.tokens.make('reader', name='other')}"}
    assert person.ask("GET", "/DM/whoami", headers=headers).json()["person"] == "token:other"
    assert person.ask("GET", "/DM/info", headers={"Authorization": "Bearer wrong"}).status_code == 401


def test_proxy_asks_who_may_see_everything(api: LiveApi, issuer: LoginIssuer) -> None:
    check = "/login/check?action=control:tasks"
    assert api.ask("GET", check).status_code == 401
    mover, operator = (Person(api) for _ in range(2))
    mover.log_in_with(api.tokens.make("mover", groups=["fire"]))
    operator.log_in_with(api.tokens.make("operator"))
    assert mover.ask("GET", check).status_code == 403
    assert operator.ask("GET", check).status_code == 204
    assert operator.ask("GET", "/login/check?action=everything").status_code == 403


@pytest.mark.server
def test_documentation_works_in_a_browser(api: LiveApi, issuer: LoginIssuer, tmp_path: Path) -> None:
    """The issuer is another site than the API: without the page between the way back would bring no Strict cookie."""
    assert issuer.url.startswith("http://127.0.0.1:")
    docs = f"http://localhost:{api.settings.port}/docs"
    with Browser(tmp_path / "browser") as browser:
        browser.open(docs)
        eventually(lambda: "Log in" in browser.text() and "/DM/register" in browser.text(), f"{browser.refused}")
        browser.run("document.querySelector('#session a').click()")
        eventually(lambda: "Service token" in browser.text(), "the login")
        browser.run("document.querySelector('a.button').click()")
        eventually(lambda: "Log out" in browser.text() and "jo" in browser.text(), "somebody is logged in")
        assert browser.run("document.cookie") == ""
        # a request that is tried on the page has the session and its token
        browser.run("""(async () => {
            const session = await (await fetch('/login/session')).json();
            const headers = {'Content-Type': 'application/json', 'X-CSRF-Token': session.csrf_token};
            document.title = (await fetch('/DM/schedules', {method: 'POST', body: '{}', headers})).status;
        })()""")
        eventually(lambda: browser.run("document.title") == "422", "it is judged, not refused")
        browser.open("about:blank")
        browser.open(f"http://localhost:{api.settings.port}/login?next=/docs")  # one who is logged in goes on
        eventually(lambda: "Log out" in browser.text(), "the documentation")
        browser.run("document.querySelector('#session button').click()")
        eventually(lambda: "Log in" in browser.text() and "Log out" not in browser.text(), "nobody is logged in")
