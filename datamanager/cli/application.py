"""Commands that run the application: they become `python -m deployments.…`, so the library never imports it.

Flags travel as environment variables: a password in one is not to be seen in `ps` once the application runs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import NoReturn

from datamanager.errors import SettingsError


def become(entry: str, environment: Mapping[str, str], arguments: Sequence[str] = ()) -> NoReturn:
    """Replace this process by an entry point of the application. Raises: SettingsError where it is not installed."""
    module = f"deployments.{entry}"
    if find_spec("deployments") is None:
        raise SettingsError(
            "the application is not installed here, only its client; run this from a checkout (make run)"
        )
    sys.stdout.flush()
    argv = [sys.executable, "-m", module, *arguments]
    # PYTHONSAFEPATH: modules are never taken from the folder that the user happens to be in
    os.execve(sys.executable, argv, {**os.environ, **environment, "PYTHONSAFEPATH": "1"})  # noqa: S606 - ourselves, no shell
