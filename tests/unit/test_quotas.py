"""quotas.toml, and how many requests per second it allows."""

from __future__ import annotations

from pathlib import Path

import pytest

from api.request_rates import FORGET_ABOVE, RequestRates
from datamanager.errors import SettingsError, TooManyRequests
from datamanager.identity.quotas import UNLIMITED, Holder, HolderKind, Quotas, load_quotas

FILE = """
version = 1
[groups."*"]
queued = 10
[groups.fire]
objects = 1_000
bytes = "2 GiB"
[persons.maria]
requests_per_second = 2
"""
MARIA, FIRE = Holder(HolderKind.PERSON, "maria"), Holder(HolderKind.GROUP, "fire")


def quotas_of(tmp_path: Path, text: str = FILE) -> Quotas:
    file = tmp_path / "quotas.toml"
    file.write_text(text)
    return load_quotas(file)


def test_quotas_are_read(tmp_path: Path) -> None:
    quotas = quotas_of(tmp_path)
    fire = quotas.of(FIRE)
    assert (fire.objects, fire.bytes, fire.queued) == (1000, 2 * 2**30, None)
    assert quotas.of(Holder(HolderKind.GROUP, "flood")).queued == 10
    assert quotas.of(Holder(HolderKind.PERSON, "jane")) is UNLIMITED
    limited = [holder for holder, _ in quotas.limited("maria", ["fire", "", "fire"])]
    assert limited == [Holder(HolderKind.GROUP, ""), FIRE, MARIA]


def test_nothing_is_limited_without_the_file(tmp_path: Path) -> None:
    quotas = load_quotas(tmp_path / "none.toml")
    assert quotas.of(FIRE) is UNLIMITED
    assert list(quotas.limited("maria", ["fire"])) == []


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("version = 2", "version"),
        ("version = 1\n[groups.fire]\nobject = 1", "groups.fire.object"),
        ("version = 1\n[users.maria]", "users"),
        ("version = 1\n[groups.fire]\nobjects = -1", "groups.fire.objects"),
        ("version = 1\n[groups.fire]\nobjects = true", "groups.fire.objects"),
        ('version = 1\n[groups.fire]\nbytes = "much"', "groups.fire.bytes"),
        ("version = 1\n[persons.maria]\nrequests_per_second = 0", "persons.maria.requests_per_second"),
        ("version = ", "TOML"),
    ],
)
def test_what_is_wrong_in_the_file_is_named(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(SettingsError, match=named):
        quotas_of(tmp_path, text)


def test_rates_allow_a_burst_and_then_so_many_per_second(tmp_path: Path) -> None:
    time = 100.0
    rates = RequestRates(quotas_of(tmp_path), lambda: time)
    rates.require("maria", ())
    rates.require("maria", ())
    for _ in range(3):  # those that are refused are not counted
        with pytest.raises(TooManyRequests) as refused:
            rates.require("maria", ())
        assert refused.value.again is not None
        assert refused.value.again.total_seconds() == pytest.approx(0.5)
    rates.require("jane", ("fire",))
    time += 0.5
    rates.require("maria", ())
    with pytest.raises(TooManyRequests):
        rates.require("maria", ())
    time += 10
    rates.require("maria", ())
    rates.require("maria", ())
    with pytest.raises(TooManyRequests):
        rates.require("maria", ())


def test_rates_of_those_who_are_quiet_are_forgotten(tmp_path: Path) -> None:
    time = 100.0
    rates = RequestRates(quotas_of(tmp_path, 'version = 1\n[persons."*"]\nrequests_per_second = 1'), lambda: time)
    for number in range(FORGET_ABOVE):
        rates.require(f"{number}", ())
    time += 2
    rates.require("maria", ())
    assert len(rates._empty) == 1
