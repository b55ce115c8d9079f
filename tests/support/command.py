"""The `dm` command, run in this process because that is quicker; tests/unit/test_cli.py starts real ones too."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from unittest import mock

from datamanager.cli.main import main
from tests.support.live_api import LiveApi


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


def run(*arguments: str, env: Mapping[str, str]) -> Done:
    """Run `dm`. One that would become another program fails the test."""
    out, err, status = io.StringIO(), io.StringIO(), 0
    paramiko = logging.getLogger("paramiko")  # `main` silences it
    with (
        mock.patch.dict(os.environ, {"COLUMNS": "250", **env}),
        mock.patch.object(os, "execve", side_effect=AssertionError("dm becomes another program")),
        mock.patch.object(sys, "argv", ["dm", *arguments]),
        mock.patch.object(paramiko, "propagate", paramiko.propagate),
        mock.patch.object(paramiko, "handlers", [*paramiko.handlers]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as exc:
            status = int(exc.code or 0)
    return Done(status, out.getvalue(), err.getvalue())


def dm(api: LiveApi, *arguments: str) -> Done:
    """Run `dm` against an API."""
    return run(*arguments, env={"DM_HOME": str(api.settings.home), "DM_PORT": str(api.settings.port)})
