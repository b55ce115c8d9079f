"""URLs, protocols and options of external sources: what is accepted, what is asked for, what is shown."""

from __future__ import annotations

import pytest

from datamanager.errors import InvalidRequest, NotSupported, UrlNotAllowed
from datamanager.sources.network.egress_guard import EgressGuard
from datamanager.sources.terms.urls import parse_target, public_url
from tests.support.downloads import open_source


@pytest.mark.parametrize(
    ("url", "protocol", "options", "error"),
    [
        ("http://h.example/", "http", None, None),
        ("http://h.example/", "HTTP", {}, None),
        ("https://h.example/", "http", {}, None),
        ("HTTPS://h.example/", "Https", {}, None),
        ("https://h.example/", "", {}, None),
        ("http://h.example/", "https", {}, UrlNotAllowed),
        ("ftp://h.example/", "http", {}, UrlNotAllowed),
        ("gopher://h.example/", "http", {}, UrlNotAllowed),
        ("file:///etc/passwd", "file", {}, UrlNotAllowed),
        ("imap://h.example/", "imap", {}, NotSupported),
        ("ldap://h.example/", "", {}, NotSupported),
        ("http://h.example/", "gopher", {}, NotSupported),
        ("http://h.example/", "http", {"username": "u", "password": "p"}, None),
        ("http://h.example/", "http", {"user": "u"}, InvalidRequest),
        ("http://h.example/", "http", {"region": "eu-west-1"}, NotSupported),
        ("http://h.example/", "http", {"timeout": -1}, InvalidRequest),
        ("http://h.example/", "http", {"verify_tls": False}, InvalidRequest),
    ],
)
def test_protocol_and_options(
    url: str, protocol: str, options: dict[str, object] | None, error: type[Exception] | None
) -> None:
    if error is None:
        open_source(url, protocol, options, EgressGuard(), max_size=1)
        return
    with pytest.raises(error):
        open_source(url, protocol, options, EgressGuard(), max_size=1)


def test_options_are_named_but_not_told() -> None:
    for options in ({"passwort": "s3cret"}, {"password": "s3cret\n"}, {"headers": {"Range": "s3cret"}}):
        with pytest.raises((NotSupported, InvalidRequest), match=r"passwort|password|Range") as caught:
            open_source("http://h.example/", "http", options, EgressGuard(), max_size=1)
        assert "s3cret" not in caught.value.detail


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://h.example/a?token=secret", "http://h.example/a?…"),
        ("http://h.example?secret", "http://h.example?…"),
        ("http://h.example/a;v=1/b?secret?secret/secret#secret", "http://h.example/a;v=1/b?…"),
        ("http://h.example/a?", "http://h.example/a?"),
        ("http://h.example/a?…", "http://h.example/a?…"),
        ("http://user:secret@h.example/a?secret\r\n@secret", "http://h.example/a?…"),
        ("http://user:secret@h.example:8080/a#secret", "http://h.example:8080/a"),
        ("HTTPS://secret@h.example", "https://h.example"),
        ("http://a@b:secret@h.example/x@y", "http://h.example/x@y"),
        ("http://user:sec/ret@h.example/", "http://…"),
        ("http://user:sec#ret@h.example/", "http://…"),
        ("http://user:sec?ret@h.example/", "http://…"),
        ("http://user:secret@[::1]:80/", "http://[::1]:80/"),
        ("http:user:secret@h.example", "http:…"),
        ("secret", "…"),
        ("http://h.example/a\r\nb", "http://h.example/a??b"),
    ],
)
def test_public_url(url: str, shown: str) -> None:
    assert public_url(url) == shown
    assert "secret" not in public_url(url)


@pytest.mark.parametrize(
    ("url", "requested", "netloc"),
    [
        ("http://H.Example.", "http://h.example/", "h.example"),
        ("http://h.example:80/a b?q=ü#f", "http://h.example/a%20b?q=%C3%BC", "h.example"),
        ("https://h.example:8443/%7Ea", "https://h.example:8443/%7Ea", "h.example:8443"),
        ("http://h.example/a%2fb%2Fc?x=%2f~%7e", "http://h.example/a%2fb%2Fc?x=%2f~%7e", "h.example"),
        ("http://h.example/a/./b/../c//d/..", "http://h.example/a/c//", "h.example"),
        ("http://h.example/../a/%2E%2e/b", "http://h.example/a/%2E%2e/b", "h.example"),
        ("http://h.example/100%/%zz%41?[a]={}|", "http://h.example/100%25/%25zz%41?%5Ba%5D=%7B%7D%7C", "h.example"),
        ("http://h.example?a", "http://h.example/?a", "h.example"),
        ("http://h.example/a;b=1,2?", "http://h.example/a;b=1,2?", "h.example"),
        ("http://bücher.example/", "http://xn--bcher-kva.example/", "xn--bcher-kva.example"),
        ("http://[2606:2800::1]:8080/", "http://[2606:2800::1]:8080/", "[2606:2800::1]:8080"),
    ],
)
def test_the_url_that_is_requested(url: str, requested: str, netloc: str) -> None:
    target = parse_target(url)
    assert (target.url, target.netloc) == (requested, netloc)
