"""Refusals are told together: nobody fills the disk by being refused."""

from __future__ import annotations

from dataclasses import replace

from models.access.refusals import KEYS_MAX, MINUTE, OTHERS, WAITING_MAX, Refusals, RefusedRequest, network_of
from models.access.requester import Requester

MARIA = RefusedRequest(Requester("maria", "token", origin="10.0.0.1"), "not_allowed", "GET /DM/trail", "/DM/trail")


def unknown(address: str) -> RefusedRequest:
    return RefusedRequest(Requester(None, "none", origin=address), "not_authenticated", "GET /DM/info", "/DM/info")


def test_the_first_refusal_is_told_at_once_and_the_others_together() -> None:
    refusals = Refusals()
    assert refusals.take(0.0) == []
    for _ in range(5):
        refusals.note(MARIA)
    assert refusals.take(1.0) == [MARIA]
    refusals.note(MARIA)
    assert refusals.take(2.0) == []
    assert refusals.take(MINUTE) == [replace(MARIA, subject=None, count=5)]
    refusals.note(MARIA)
    assert refusals.take(MINUTE + 1) == [MARIA]
    assert refusals.take(3 * MINUTE) == []


def test_a_person_is_one_whatever_their_address() -> None:
    refusals = Refusals()
    refusals.note(MARIA)
    refusals.note(replace(MARIA, by=replace(MARIA.by, origin="10.0.0.2")))
    assert refusals.take(0.0) == [MARIA]
    refusals.note(replace(MARIA, code="object_not_found"))
    assert [one.code for one in refusals.take(1.0)] == ["object_not_found"]


def test_an_attacker_with_many_addresses_makes_few_rows() -> None:
    refusals, written = Refusals(), 0
    for minute in range(3):
        refusals.take(minute * MINUTE)
        for number in range(50 * KEYS_MAX):
            refusals.note(unknown(f"10.{minute}.{number // 256}.{number % 256}"))
        written = len(refusals.take(minute * MINUTE + 1))
        assert written == KEYS_MAX + 1
    told = refusals.take(3 * MINUTE)
    assert [(one.by, one.count) for one in told] == [(OTHERS, 49 * KEYS_MAX - 1)]
    assert len(refusals._first) == 0


def test_addresses_of_one_ipv6_network_are_one() -> None:
    assert network_of("2001:db8::1") == network_of("2001:db8::ffff:1") != network_of("2001:db8:0:1::1")
    assert network_of("10.0.0.1") != network_of("10.0.0.2")
    assert network_of("queue dm.requests") == "queue dm.requests"


def test_what_waits_for_the_catalogue_is_bounded() -> None:
    refusals = Refusals()
    for _ in range(WAITING_MAX // KEYS_MAX + 5):
        refusals.give_back([MARIA] * KEYS_MAX)
    assert len(refusals.take(0.0)) == WAITING_MAX


def test_the_end_of_a_process_tells_what_is_left() -> None:
    refusals = Refusals()
    refusals.note(MARIA)
    refusals.note(MARIA)
    assert [one.count for one in refusals.take(1.0, last=True)] == [1, 1]
