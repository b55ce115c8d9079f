"""A program of the site's own, run on every kind of machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from datamanager.errors import Cancelled, RemoteFailure
from datamanager.transports.port import Session
from tests.contract.conftest import commands, until
from tests.contract.test_transport import NAMES


@pytest.mark.parametrize("status", [0, 1, 42])
def test_its_exit_status_is_told(session: Session, status: int) -> None:
    assert session.programs.run(["sh", "-c", f"echo much; echo more >&2; exit {status}"]) == status


@pytest.mark.parametrize("raw", NAMES)
def test_its_words_are_only_words(session: Session, tmp_path: Path, raw: bytes) -> None:
    path = f"{tmp_path}/{os.fsdecode(raw)}"
    assert session.programs.run(["touch", path]) == 0
    assert os.listdir(os.fsencode(tmp_path)) == [raw]
    assert session.programs.run(["test", "-e", path]) == 0
    assert session.programs.run(["test", "-e", f"{path}?"]) == 1


def test_one_that_is_not_there_is_a_failure(session: Session) -> None:
    with pytest.raises(RemoteFailure, match="no-such-program"):
        session.programs.run(["no-such-program", "x"])


def test_one_that_is_given_up_is_ended(session: Session) -> None:
    word = f"98765.{os.getpid()}"

    def give_up(_: int) -> None:
        if commands(f"sleep {word}"):
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        session.programs.run(["sleep", word], give_up)
    assert until(lambda: not commands(f"sleep {word}"))
    assert session.programs.run(["true"]) == 0
