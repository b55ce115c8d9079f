"""Names of files that nobody named."""

from __future__ import annotations

import pytest

from datamanager.domain.location import DEFAULT_NAME_MAX, name_of_url, safe_name
from datamanager.domain.requests import GetExternalRequest, validated
from datamanager.errors import InvalidRequest


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("data.nc", "data.nc"),
        ("../../etc/passwd", "passwd"),
        ("..\\..\\evil.exe", "evil.exe"),
        (".ssh", "ssh"),
        (" . .hidden ", "hidden"),
        ("..", None),
        (".", None),
        ("", None),
        ("dir/", None),
        ("a\0b\r\n.nc", "ab.nc"),
        ("\u202egnp.exe", "gnp.exe"),
        ("$(id).nc", "$(id).nc"),
    ],
)
def test_safe_name(text: str, name: str | None) -> None:
    assert safe_name(text) == name


@pytest.mark.parametrize("text", ["x" * 999 + ".tar.gz", "é" * 500 + ".nc", "x." + "y" * 999, "€" * 999])
def test_long_names_are_cut(text: str) -> None:
    name = safe_name(text)
    assert name is not None
    assert 100 < len(name.encode()) <= DEFAULT_NAME_MAX
    assert name.endswith((".gz", ".nc", "y", "€"))


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://h.example/a/b.nc?token=secret#c", "b.nc"),
        ("https://h.example/a%20b.nc", "a b.nc"),
        ("https://h.example/x%2F..%2Fy", "y"),
        ("https://h.example/..%2f", None),
        ("https://h.example/", None),
        ("https://h.example?file=a.nc", None),
        ("http://[", None),
    ],
)
def test_name_of_url(url: str, name: str | None) -> None:
    assert name_of_url(url) == name


def test_a_download_without_a_name_has_its_urls() -> None:
    fields = {"machine": "m", "url": "https://h.example/a/b.nc?token=secret", "filename": ""}
    assert validated(fields, GetExternalRequest).filename == "b.nc"
    assert validated(fields | {"filename": "mine"}, GetExternalRequest).filename == "mine"
    with pytest.raises(InvalidRequest) as caught:
        validated(fields | {"url": "https://h.example/"}, GetExternalRequest)
    assert set(caught.value.fields) == {"filename"}
