"""What a message is, decided without a broker: tables and hostile bytes."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamanager.domain.states import TransferKind
from datamanager.identity.grant import EVERYBODY
from datamanager.messaging.consuming import DeadLetter
from deployments.amqp.submission import BODY_MAX, NAME_MAX, Call, read_message

GOOD: dict[str, Any] = {
    "specversion": "1.0",
    "id": "1",
    "source": "/workflow/7",
    "type": "dm.request.copy",
    "data": {"uuid": "6ff89a46-7445-475d-8fd9-29db3edaca26", "machine": "there", "dest": "out/a.nc"},
}


def event(**changes: Any) -> bytes:
    return json.dumps({name: value for name, value in (GOOD | changes).items() if value is not ...}).encode()


@pytest.mark.parametrize("kind", TransferKind)
def test_each_kind_of_request_is_read(kind: TransferKind) -> None:
    call = read_message(event(type=f"dm.request.{kind}"))
    assert isinstance(call, Call)
    assert (call.kind, call.source, call.id, call.data) == (kind, "/workflow/7", "1", GOOD["data"])


def test_our_own_notification_is_read() -> None:
    transfer = uuid4()
    assert read_message(event(type="dm.transfer.requested", data={"transfer": str(transfer)})) == transfer


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "malformed_body"),
        (b"hello", "malformed_body"),
        (b"\xff\xfe\x00", "malformed_body"),
        (b'{"specversion": "1.0"', "malformed_body"),
        (b'{"a": NaN}', "malformed_body"),
        (b'{"a": 1e999}', "malformed_body"),
        (b'"\\ud800"', "malformed_body"),
        (b"[" * 100_000, "malformed_body"),
        (b'{"a":' * 5000 + b"1" + b"}" * 5000, "malformed_body"),
        (event(data=json.loads("[" * 500 + "]" * 500)), "malformed_body"),
        (event(type="dm.transfer.requested", data={"transfer": "../../etc"}), "malformed_body"),
        (event(type="dm.transfer.requested", data={"transfer": 7}), "malformed_body"),
        (event(type="dm.transfer.requested", data=None), "malformed_body"),
        (b"null", "not_a_cloud_event"),
        (b"[]", "not_a_cloud_event"),
        (b"{}", "not_a_cloud_event"),
        (event(specversion=1.0), "not_a_cloud_event"),
        (event(specversion="0.3"), "not_a_cloud_event"),
        (event(id=...), "not_a_cloud_event"),
        (event(id=""), "not_a_cloud_event"),
        (event(id=17), "not_a_cloud_event"),
        (event(source={"a": 1}), "not_a_cloud_event"),
        (event(source="s" * (NAME_MAX + 1)), "not_a_cloud_event"),
        (event(type=None), "not_a_cloud_event"),
        (event(type="copy"), "unknown_type"),
        (event(type="dm.request."), "unknown_type"),
        (event(type="dm.request.COPY"), "unknown_type"),
        (event(type="dm.request.register"), "unknown_type"),
        (event(type="dm.request.accepted"), "unknown_type"),
        (b" " * (BODY_MAX + 1), "too_large"),
    ],
)
def test_what_cannot_be_processed_says_why(body: bytes, reason: str) -> None:
    found = read_message(body)
    assert isinstance(found, DeadLetter)
    assert found.reason == reason
    assert 0 < len(found.detail) < 3000


def test_source_and_id_name_a_request_without_ambiguity() -> None:
    keys = set()
    for source, name in [("a", "bc"), ("ab", "c"), ("a,b", "c"), ("a", "b,c"), ('a","b', "c"), ("ü", "x" * NAME_MAX)]:
        call = read_message(event(source=source, id=name))
        assert isinstance(call, Call)
        assert len(call.key(EVERYBODY)) <= 255
        keys.add(call.key(EVERYBODY))
    assert len(keys) == 6


def test_the_order_of_fields_makes_no_other_request() -> None:
    one = read_message(event(data={"uuid": "u", "machine": "m"}))
    two = read_message(event(data={"machine": "m", "uuid": "u"}))
    three = read_message(event(data={"machine": "m", "uuid": "v"}))
    assert isinstance(one, Call)
    assert isinstance(two, Call)
    assert isinstance(three, Call)
    assert one.fingerprint == two.fingerprint != three.fingerprint


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@settings(max_examples=300, deadline=None)
@given(
    st.binary()
    | _json.map(lambda value: json.dumps(value).encode())
    | st.fixed_dictionaries(
        {},
        optional=dict.fromkeys(GOOD, _json)
        | {"specversion": st.just("1.0"), "type": st.sampled_from([GOOD["type"], "x"])},
    ).map(lambda value: json.dumps(GOOD | value).encode())
)
def test_any_bytes_at_all_are_judged(body: bytes) -> None:
    assert isinstance(read_message(body), UUID | Call | DeadLetter)
