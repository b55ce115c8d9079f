"""Admission: a request is checked and sealed before it can be submitted, and only a sealed one can be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from datamanager.domain.requests import CopyRequest, GetExternalRequest
from datamanager.domain.states import TransferKind
from datamanager.errors import InternalError, UrlNotAllowed
from datamanager.sealing import Sealer
from datamanager.sources.terms.request_secrets import joined
from models.submission import SealedRequest, TransferRequest, prepare

SECRET = "hunter2"
FETCH = GetExternalRequest(
    machine="here", filename="a", url=f"https://data.example/a?token={SECRET}", options={"password": SECRET}
)
COPY = CopyRequest(machine="here", dest="a")


@pytest.fixture
def sealer(tmp_path: Path) -> Sealer:
    return Sealer(tmp_path / "secrets.key", made_here=True)


def test_sealed_request_refuses_plain_secrets() -> None:
    with pytest.raises(InternalError, match="not sealed"):
        SealedRequest(TransferKind.GETEXTERNAL, FETCH, grant=None)
    with pytest.raises(InternalError, match="not sealed"):
        prepare(TransferRequest(TransferKind.GETEXTERNAL, FETCH, grant=None))


def test_sealed_request_stays_sealed_when_it_is_changed(sealer: Sealer) -> None:
    sealed = replace(
        prepare(TransferRequest(TransferKind.GETEXTERNAL, FETCH, grant=None), sealer=sealer), flow_run_id=uuid4()
    )
    assert sealed.sealed is not None
    with pytest.raises(InternalError, match="not sealed"):
        replace(sealed, fields=FETCH)


def test_prepare_seals_what_is_secret_and_keeps_the_rest(sealer: Sealer) -> None:
    run = uuid4()
    wanted = TransferRequest(TransferKind.GETEXTERNAL, FETCH, None, True, run, "because", grant=None)
    sealed = prepare(wanted, sealer=sealer)
    assert SECRET not in repr(sealed.fields.model_dump())
    assert (sealed.kind, sealed.fail_fast, sealed.flow_run_id, sealed.reason) == (wanted.kind, True, run, "because")
    assert isinstance(sealed.fields, GetExternalRequest)
    assert joined(sealed.fields, sealer.open(sealed.sealed or "")) == FETCH


def test_prepare_checks_the_source_before_it_seals(tmp_path: Path, sealer: Sealer) -> None:
    def refuse(_: GetExternalRequest) -> None:
        raise UrlNotAllowed("not there")

    with pytest.raises(UrlNotAllowed):
        prepare(TransferRequest(TransferKind.GETEXTERNAL, FETCH, grant=None), refuse, sealer)
    assert not list(tmp_path.iterdir())  # no key was made
    assert (
        prepare(TransferRequest(TransferKind.COPY, COPY, uuid4(), grant=None), refuse, sealer).sealed is None
    )  # it has no source
