"""The `dm` command, run in this process because that is quicker; tests/unit/test_cli.py starts real ones."""

from __future__ import annotations

import contextlib
import io
import os
import sys
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


def dm(api: LiveApi, *arguments: str) -> Done:
    """Run `dm` against an API."""
    variables = {"DM_HOME": str(api.settings.home), "DM_PORT": str(api.settings.port), "COLUMNS": "250"}
    out, err, status = io.StringIO(), io.StringIO(), 0
    with (
        mock.patch.dict(os.environ, variables),
        mock.patch.object(sys, "argv", ["dm", *arguments]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as exc:
            status = int(exc.code or 0)
    return Done(status, out.getvalue(), err.getvalue())
