"""Commands that run the application, which the library never imports."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import NoReturn

from datamanager.errors import SettingsError
from datamanager.settings import TOKEN


def become(entry: str, environment: Mapping[str, str], arguments: Sequence[str] = ()) -> NoReturn:
    """Replace this process by an entry point of the application: by `python -m`, so the library never imports it.

    Flags are passed as environment variables, so that `ps` shows no password once the application runs. Raises:
    SettingsError if it is not installed.
    """
    module = f"deployments.{entry}"
    if find_spec("deployments") is None:
        raise SettingsError(
            "only the client is installed here, not the application; run this command from a checkout (make run)"
        )
    sys.stdout.flush()
    argv = [sys.executable, "-m", module, *arguments]
    # PYTHONSAFEPATH: never import modules from the current folder
    inherited = {name: value for name, value in os.environ.items() if name != TOKEN}  # the service needs none
    os.execve(sys.executable, argv, {**inherited, **environment, "PYTHONSAFEPATH": "1"})  # noqa: S606 - ourselves, no shell
