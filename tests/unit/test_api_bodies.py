"""Forms and JSON mean the same; what can't be read or stored is refused by name, never a fault of ours."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.http.request_parts import FORM, JSON, parse_fields
from datamanager.domain.requests import CopyRequest, GetExternalRequest, RegisterRequest, validated
from datamanager.errors import InvalidRequest, MalformedBody, RequestError

TEXTS = st.dictionaries(
    st.text(min_size=1, max_size=20).filter(lambda t: not t.lstrip().startswith("{")), st.text(), max_size=8
)
GOOD = {"machine": "here", "filename": "f"}


def parse(body: bytes | str, content_type: str) -> dict[str, Any]:
    return asyncio.run(parse_fields(body.encode() if isinstance(body, str) else body, content_type))


def multipart(fields: dict[str, str], boundary: str = "XxX") -> bytes:
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in fields.items()
    ]
    return ("".join(parts) + f"--{boundary}--\r\n").encode()


@given(TEXTS)
def test_a_form_and_json_mean_the_same(fields: dict[str, str]) -> None:
    as_form = parse(urlencode(fields), FORM)
    as_json = parse(json.dumps(fields, ensure_ascii=False), JSON)
    # a body of nothing but blanks has no fields
    assert as_form == as_json == fields or not urlencode(fields).strip()


def test_multipart_means_the_same() -> None:
    fields = {"machine": "here", "filename": "wéather +&=.nc", "description": "two\r\nlines"}
    assert parse(multipart(fields), "multipart/form-data; boundary=XxX") == fields


@pytest.mark.parametrize("content_type", ["", JSON, "application/json; charset=utf-8", "application/merge-patch+json"])
def test_json_is_read_by_its_type_or_without_one(content_type: str) -> None:
    assert parse('{"machine": "here"}', content_type) == {"machine": "here"}


@pytest.mark.parametrize("content_type", ["", FORM, JSON, "multipart/form-data; boundary=x"])
def test_no_body_is_no_fields(content_type: str) -> None:
    assert parse(b"", content_type) == {}


def test_of_a_field_that_comes_twice_the_last_counts() -> None:
    assert parse("a=1&a=2", FORM) == {"a": "2"}
    assert parse('{"a": "1", "a": "2"}', JSON) == {"a": "2"}


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"{", JSON),
        (b"[1, 2]", JSON),
        (b'"text"', JSON),
        (b"null", JSON),
        (b'{"size": NaN}', JSON),
        (b'{"size": ' + b"9" * 5000 + b"}", JSON),
        (b'{"a":' * 100_000, JSON),
        (b"[" * 100_000, JSON),
        (b"\xff\xfe", JSON),
        (b"a=\xff", FORM),
        (b"a=%ff", FORM),
        (b"&".join(b"f%d=1" % number for number in range(101)), FORM),
        (b'{"machine": "here"}', FORM),
        (b'{"machine": "here"}', "text/plain"),
        (b"<a/>", "application/xml"),
        (b"{}", "application/json; charset=latin-1"),
        (b"no boundary", "multipart/form-data"),
        (b"not multipart", "multipart/form-data; boundary=x"),
        (
            b'--x\r\nContent-Disposition: form-data; name="f"; filename="g"\r\n\r\nfile\r\n--x--\r\n',
            "multipart/form-data; boundary=x",
        ),
        (b"--x\r\nContent-Disposition: form-data\r\n\r\nnameless\r\n--x--\r\n", "multipart/form-data; boundary=x"),
    ],
    ids=lambda value: repr(value[:30]),
)
def test_what_cannot_be_parsed_is_malformed(body: bytes, content_type: str) -> None:
    with pytest.raises(MalformedBody):
        parse(body, content_type)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({}, {"machine", "filename"}),
        ({**GOOD, "filename": ""}, {"filename"}),
        ({**GOOD, "filename": "a/b"}, {"filename"}),
        ({**GOOD, "filename": ".."}, {"filename"}),
        ({**GOOD, "filename": "nul\0"}, {"filename"}),
        ({**GOOD, "filename": "\ud800"}, {"filename"}),
        ({**GOOD, "filename": ["list"]}, {"filename"}),
        ({**GOOD, "description": "x" * 70_000}, {"description"}),
        ({**GOOD, "group": {"a": 1}}, {"group"}),
        ({**GOOD, "size": "many"}, {"size"}),
        ({**GOOD, "size": -1}, {"size"}),
        ({**GOOD, "size": 2**63}, {"size"}),
        ({**GOOD, "size": 2**20_000}, {"size"}),
        ({**GOOD, "size": 1e400}, {"size"}),
        ({**GOOD, "size": 1.5}, {"size"}),
        ({**GOOD, "verify": "perhaps"}, {"verify"}),
        ({**GOOD, "metadata": "[]"}, {"metadata"}),
        ({**GOOD, "metadata": "{"}, {"metadata"}),
        ({**GOOD, "metadata": {"a": "\ud800"}}, {"metadata"}),
        ({**GOOD, "metadata": {"\0": 1}}, {"metadata"}),
        ({**GOOD, "metadata": '{"a": 1e400}'}, {"metadata"}),
        ({**GOOD, "metadata": {"a": 2**64}}, {"metadata"}),
        ({**GOOD, "metadata": json.loads('{"a":' * 50 + "1" + "}" * 50)}, {"metadata"}),
    ],
    ids=lambda value: "-" if isinstance(value, dict) else "+".join(sorted(value)),
)
def test_each_wrong_field_is_named(fields: dict[str, Any], named: set[str]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        validated(fields, RegisterRequest)
    assert set(caught.value.fields) == named


def test_metadata_nested_beyond_all_measure_is_refused() -> None:
    with pytest.raises(RequestError):
        validated({**GOOD, "metadata": '{"a":' * 100_000}, RegisterRequest)


def test_what_old_clients_send_is_welcome() -> None:
    fields = {**GOOD, "type": "raw", "storage_technology": "FILE", "size": "", "metadata": "", "verify": ""}
    found = validated(fields, RegisterRequest)
    assert (found.size, found.metadata, found.verify) == (None, {}, "stat")
    assert validated({**GOOD, "size": "0"}, RegisterRequest).size is None
    assert validated({**GOOD, "size": str(2**63 - 1)}, RegisterRequest).size == 2**63 - 1
    assert validated({"machine": "here", "dest": "a/b", "overwrite": "true"}, CopyRequest).overwrite
    assert validated({**GOOD, "url": "http://a/", "options": "{}"}, GetExternalRequest).options == {}


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters()), inner, max_size=3),
    max_leaves=10,
)


@given(
    st.fixed_dictionaries({"machine": JUNK, "filename": JUNK}, optional={"size": JUNK, "metadata": JUNK, "path": JUNK})
)
def test_junk_is_refused_or_can_be_stored(fields: dict[str, Any]) -> None:
    with contextlib.suppress(InvalidRequest):
        found = validated(fields, RegisterRequest)
        json.dumps(found.model_dump(mode="json"), allow_nan=False, ensure_ascii=False).encode()
