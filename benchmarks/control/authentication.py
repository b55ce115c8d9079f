"""What authentication costs: the same request to two APIs, by turns, one with a token and one that asks for none."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import requests

from benchmarks.race import Figure, Outcome, Tell, Timing, WrongResult
from datamanager.settings import Settings
from tests.support.api_process import ApiProcess
from tests.support.oidc_issuer import AUDIENCE, OidcIssuer
from tests.support.tokens import TokenMaker

OPEN, BY_TOKEN, BY_ISSUER = "no authentication", "service token", "bearer token of an issuer"
RULES = "".join(
    f'[[{what}]]\nsource = "{{{claim}}}"\nmatch = "(.*)"\noutput = "{{0}}"\n'
    for what, claim in (("person", "sub"), ("roles", "dm"))
)
"""An identity.toml."""
WARM_UP = 100
"""Requests before the first that counts."""
OBJECTS = 1000


def access(folder: Path, asked: int, rounds: int, tell: Tell) -> Outcome:
    """Time requests for one object, each contender's over one connection that is kept."""
    (folder / "identity.toml").write_text(RULES)
    with OidcIssuer() as issuer:
        issuer.clock.now = time.time()
        required: dict[str, Any] = {"auth": "required", "identity": folder / "identity.toml"}
        required |= {"oidc_issuer": issuer.url, "oidc_audience": AUDIENCE}
        with ApiProcess(folder / "open") as plain, ApiProcess(folder / "required", **required) as guarded:
            for api in (plain, guarded):
                api.fill(OBJECTS, 100)
            tokens = TokenMaker(guarded.database, Settings(home=guarded.catalogue.parent))
            contenders = {
                OPEN: _requests(plain, None),
                BY_TOKEN: _requests(guarded, tokens.make("admin")),
                BY_ISSUER: _requests(guarded, issuer.token(dm=["admin"])),
            }
            took = _by_turns(contenders, asked, rounds, tell)
    more = {
        name: tuple(1000 * (mine - other) for mine, other in zip(took[name], took[OPEN], strict=True)) for name in took
    }
    what = "a request for one object, p50: what authentication adds"
    return Outcome(
        tuple(Figure("access", what, name, OPEN, 2, more[name], "ms") for name in (BY_TOKEN, BY_ISSUER)),
        tuple(Timing("access", name, tuple(took[name]), 1, "requests") for name in contenders),
        OPEN,
    )


def _requests(api: ApiProcess, token: str | None) -> Callable[[], float]:
    """Return what sends one request and returns its seconds."""
    client = requests.Session()
    client.headers.update({} if token is None else {"Authorization": f"Bearer {token}"})
    answer = client.get(f"{api.url}/DM/info?limit=1", timeout=60)
    if answer.status_code != 200:
        raise WrongResult(f"{answer.status_code} {answer.text}")
    url = f"{api.url}/DM/info/{answer.json()[0]['id']}"

    def ask() -> float:
        begin = time.perf_counter()
        answer = client.get(url, timeout=60)
        took = time.perf_counter() - begin
        if answer.status_code != 200:
            raise WrongResult(f"{answer.status_code} {answer.text}")
        return took

    return ask


def _by_turns(
    contenders: dict[str, Callable[[], float]], asked: int, rounds: int, tell: Tell
) -> dict[str, list[float]]:
    """Return the medians of the rounds; by turns, so that what else runs on this host meets all."""
    took: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        some: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(asked if number else WARM_UP):
            for name, ask in contenders.items():
                some[name].append(ask())
        if number:
            for name, seconds in some.items():
                took[name].append(statistics.median(seconds))
            tell(f"access {number}: " + ", ".join(f"{name} {took[name][-1] * 1000:.2f} ms" for name in took))
    return took
