"""Service tokens, and the rules that make people of claims."""

from __future__ import annotations

import re
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from datamanager.errors import NotAllowed, NotAuthenticated, SettingsError
from datamanager.identity.grant import Means
from datamanager.identity.mapping import ITEMS_MAX, IdentityRules, MappingRule, load_identity_rules
from datamanager.identity.oidc import OidcLogin
from datamanager.identity.roles import load_roles
from datamanager.identity.scopes import AccessTarget
from datamanager.identity.service_token import ALPHABET, ServiceToken, is_service_token
from datamanager.sealing import Sealer
from datamanager.settings import load_settings
from tests.support.oidc_issuer import OidcIssuer

KEY, OTHER_KEY = b"k" * 32, b"o" * 32


def test_token_is_one_word_of_known_form() -> None:
    text = ServiceToken.make().reveal()
    assert re.fullmatch(r"dm_[0-9A-Za-z]{50}", text)
    assert is_service_token(text)
    body = text[3:-6]
    number = 0
    for digit in text[-6:]:
        number = number * 62 + ALPHABET.index(digit)
    assert number == zlib.crc32(body.encode())
    assert len({ServiceToken.make().reveal() for _ in range(100)}) == 100


def test_token_is_read_as_it_was_written() -> None:
    token = ServiceToken.make()
    assert ServiceToken.parse(token.reveal()) == token


@given(st.data())
def test_mistyped_token_is_told_apart_without_looking_it_up(data: st.DataObject) -> None:
    text = ServiceToken.make().reveal()
    place = data.draw(st.integers(3, len(text) - 1))
    other = data.draw(st.sampled_from([digit for digit in ALPHABET if digit != text[place]]))
    with pytest.raises(NotAuthenticated, match="checksum is wrong"):
        ServiceToken.parse(f"{text[:place]}{other}{text[place + 1 :]}")


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t[:-1],
        lambda t: t + "\n",
        lambda t: " " + t,
        lambda t: t.upper(),
        lambda t: "",
        lambda t: t[:-1] + "٣",
        lambda t: "ghp_" + t[3:],
    ],
)
def test_what_has_not_the_form_is_no_token(change: Any) -> None:
    with pytest.raises(NotAuthenticated, match="no service token"):
        ServiceToken.parse(change(ServiceToken.make().reveal()))


def test_token_does_not_show_its_secret() -> None:
    token = ServiceToken.make()
    assert token.identifier in repr(token)
    for shown in (repr(token), str(token), f"{token}", token.digest(KEY)):
        assert token.secret not in shown


def test_digest_needs_the_same_token_and_key() -> None:
    token = ServiceToken.make()
    stored = token.digest(KEY)
    assert re.fullmatch("[0-9a-f]{64}", stored)
    assert token.matches(KEY, stored)
    assert not token.matches(OTHER_KEY, stored)
    assert not token.matches(KEY, None)
    assert not token.matches(KEY, "é")
    assert not ServiceToken(token.identifier, ServiceToken.make().secret).matches(KEY, stored)
    assert not ServiceToken(ServiceToken.make().identifier, token.secret).matches(KEY, stored)
    with pytest.raises(ValueError, match="at least 32 bytes"):
        token.digest(b"short")


def test_keys_for_different_purposes_differ(tmp_path: Path) -> None:
    sealer = Sealer(tmp_path / "secrets.key", made_here=True)
    assert sealer.derived("a") == sealer.derived("a") != sealer.derived("b")
    assert len(sealer.derived("a")) == 32


# --- rules -----------------------------------------------------------------------------------------------------------

CLAIMS = {
    "sub": "4711",
    "email": "Jo@example.org",
    "groups": ["/fire", "/flood", "other", 5, None, "/a\nb", "/" + "x" * 300],
    "realm_access": {"roles": ["dm-mover", "dm-root", "offline"]},
    "braces": "{sub}",
    "number": 5,
}


def rule(match: str, source: str = "{email}", output: str = "{0}", **options: bool) -> MappingRule:
    return MappingRule(source=source, match=match, output=output, **options)


@pytest.mark.parametrize(
    ("one", "outputs"),
    [
        (rule(r"(.*)@example\.org"), ["Jo"]),
        (rule(r"(.*)@example.org"), ["Jo"]),
        (rule(r"(.*)@example\.or"), []),  # the whole of it
        (rule(r"o@example\.org|Jo", output="x"), []),
        (rule(r"(jo)@EXAMPLE\.org"), []),
        (rule(r"(jo)@EXAMPLE\.org", ignore_case=True), ["Jo"]),
        (rule("Jo@example.org", output="operator", literal=True), ["operator"]),
        (rule("(.*)", literal=True, output="x"), []),
        (rule("(a|Jo|b)@(x|y)?(.*)", output="{0}+{2}"), ["Jo+example.org"]),
        (rule("(a)?Jo@.*", output="{0}"), []),  # a group that took no part
        (rule("/(.*)", source="{groups}"), ["fire", "flood"]),
        (rule("dm-(.*)", source="{realm_access.roles}"), ["mover", "root"]),
        (rule("(.*)", source="{braces}"), ["{sub}"]),  # a value is not read again
        (rule("(.*)", source="{number}"), []),
        (rule("(.*)", source="{missing}"), []),
        (rule("(.*)", source="{missing.more}"), []),
        (rule(".*", output="{sub}-{missing}"), []),
        (rule("(.*)/(.*)", source="{sub}/{email}", output="{1}:{0}"), ["Jo@example.org:4711"]),
        (rule("(.*)", source="{sub} "), []),
        (rule("a+$^[x]{1}", source="{sub}", output="x"), []),
    ],
)
def test_rule_maps_claims(one: MappingRule, outputs: list[str]) -> None:
    assert list(one.outputs(CLAIMS)) == outputs


@pytest.mark.parametrize(
    "name", ["jo\N{KELVIN SIGN}", "\N{LATIN SMALL LETTER DOTLESS I}", "\N{LATIN SMALL LETTER LONG S}"]
)
def test_letters_that_only_look_alike_do_not_match(name: str) -> None:
    assert list(rule("jok|i|s", source="{sub}", output="x", ignore_case=True).outputs({"sub": name})) == []


@pytest.mark.attack(cwe=1333, title="A mapping rule takes for ever with some claim")
@pytest.mark.parametrize(
    ("match", "words"),
    [
        ("(a*)*", "must follow a character"),
        ("(a|aa)*", "must follow a character"),
        ("a**", "must follow"),
        ("a*?", "must follow"),
        ("*", "must follow"),
        ("(?:a)", "must follow"),
        ("(.*)(.*)(.*)(.*)", "may take too long"),
        ("(a|a)" * 30, "may take too long"),
        ("a?" * 30, "may take too long"),
        (r"(a)\1", "no escape"),
        (r"\d", "no escape"),
        ("(a", "not closed"),
        ("a)", "not open"),
        ("a\\", "backslash"),
    ],
)
def test_pattern_outside_the_language_is_refused(match: str, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        rule(match, output="x")


@pytest.mark.parametrize(
    ("source", "output"),
    [("{email", "x"), ("{}", "x"), ("{0}", "x"), ("{email}", "{1}"), ("{email}", "}"), ("{email}", "{}")],
)
def test_template_that_means_nothing_is_refused(source: str, output: str) -> None:
    with pytest.raises(ValidationError):
        rule("(.*)", source, output)


def test_claim_of_too_many_items_is_refused() -> None:
    with pytest.raises(NotAllowed, match="more than 500 items"):
        list(rule("(.*)", source="{groups}").outputs({"groups": ["x"] * (ITEMS_MAX + 1)}))


RULES = r"""
version = 1
[[person]]
source = "{email}"
match = '(.*)@example\.org'
output = "{0}"
ignore_case = true
[[person]]
source = "{sub}"
match = "(.*)"
output = "sub-{0}"
[[groups]]
source = "{groups}"
match = "/(.*)"
output = "{0}"
[[roles]]
source = "{realm_access.roles}"
match = "dm-(.*)"
output = "{0}"
[[principal]]
source = "{email}"
match = '(.*)@example\.org'
output = "{0}"
"""


def test_rules_make_a_person(tmp_path: Path) -> None:
    file = tmp_path / "identity.toml"
    file.write_text(RULES)
    rules, roles = load_identity_rules(file), load_roles()
    who = rules.map(CLAIMS, roles)
    assert (who.person, who.groups, who.roles, who.principal) == ("Jo", frozenset({"fire", "flood"}), ("mover",), "Jo")
    stranger = rules.map({"sub": "1", "email": "jo@evil.example"}, roles)
    assert (stranger.person, stranger.groups, stranger.roles, stranger.principal) == ("sub-1", frozenset(), (), None)


@pytest.mark.parametrize("login", ["root", "-oProxyCommand=x", "a b", "a,b", "a/b", "x" * 65])
def test_login_that_is_no_ordinary_one_is_none(tmp_path: Path, login: str) -> None:
    file = tmp_path / "identity.toml"
    file.write_text(RULES)
    who = load_identity_rules(file).map({"sub": "1", "email": f"{login}@example.org"}, load_roles())
    assert who.principal is None


@pytest.mark.attack(cwe=1007, title="A claim looks like the name of a service token, or of the service")
@pytest.mark.parametrize(
    "claimed",
    [
        *("token:admin", "token:", "token:no such token", "Token:admin", "TOKEN:admin", "to\u212aen:admin"),
        *("\uff54oken:admin", "token\uff1aadmin", "\U0001d42doken:admin", "token\ufe55admin"),
        *("service", "Service", "local", "nobody", "*", "\uff0a", "lo\u200bcal"),
    ],
)
@pytest.mark.parametrize("output", ["{0}", "{sub}"])
def test_claims_make_nobody_that_is_a_token_or_the_service(claimed: str, output: str) -> None:
    rules = IdentityRules(person=(rule("(.*)", source="{sub}", output=output), rule("(.*)")))
    with pytest.raises(NotAllowed, match="reserved" if claimed.isprintable() else None):
        rules.map({"sub": claimed}, load_roles())
    with pytest.raises(NotAllowed):  # of a list the first counts
        rules.map({"sub": [claimed, "jo"]} if claimed.isprintable() else {"sub": [claimed]}, load_roles())


def test_rule_cannot_put_a_reserved_name_together() -> None:
    for one in (rule("(.*)", output="token:{0}"), rule("(.*)", source="{kind}:{sub}"), rule("(.*)", output="local")):
        with pytest.raises(NotAllowed, match="reserved"):
            IdentityRules(person=(one,)).map({"sub": "admin", "kind": "token", "email": "jo"}, load_roles())


@pytest.mark.parametrize("name", ["jo", "tokens", "my token:x", "services", "localhost", "token"])
def test_other_names_are_persons(name: str) -> None:
    assert IdentityRules(person=(rule("(.*)", source="{sub}"),)).map({"sub": name}, load_roles()).person == name


def test_without_rules_nobody_is_known(tmp_path: Path) -> None:
    rules = load_identity_rules(tmp_path / "identity.toml")
    assert rules == IdentityRules()
    with pytest.raises(NotAllowed):
        rules.map(CLAIMS, load_roles())


def test_wrong_rules_are_one_clear_line(tmp_path: Path) -> None:
    file = tmp_path / "identity.toml"
    for text, words in ((RULES + "colour = 1", "principal.0.colour: unknown key"), ("x", "not valid TOML")):
        file.write_text(text)
        with pytest.raises(SettingsError, match=words) as error:
            load_identity_rules(file)
        assert "\n" not in error.value.detail


def test_bearer_token_becomes_a_grant(tmp_path: Path) -> None:
    (tmp_path / "identity.toml").write_text(RULES)
    assert OidcLogin.of(load_settings(home=tmp_path)) is None
    with OidcIssuer() as issuer:
        login = OidcLogin.of(load_settings(home=tmp_path, oidc_issuer=issuer.url, oidc_audience="datamanager"))
        assert login is not None
        login._tokens = issuer.tokens()  # with the issuer's clock
        held = login.grant(issuer.token(realm_access={"roles": ["dm-mover"]}))
    assert (held.person, held.means, held.credential, held.principal) == ("jo", Means.OIDC, "4711", "jo")
    assert held.may("transfers", AccessTarget("fire"))
    assert not held.may("transfers", AccessTarget("quake"))
