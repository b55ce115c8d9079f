"""The environment that Prefect's processes need, derived from our settings.

Prefect reads its own settings when it is imported, so they must stand in the environment before that; the user's own
Prefect profile is not touched (`PREFECT_HOME` is below `DM_HOME`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from urllib.parse import urlsplit

from datamanager.errors import SettingsError
from datamanager.listening import is_loopback
from datamanager.settings import Settings

WORK_POOL = "data-manager"
RUN_HEARTBEAT = 30
"""Seconds between two heartbeats of a flow run."""


def prefect_environment(settings: Settings) -> dict[str, str]:
    """Return the variables of a process that talks to Prefect, or is its server."""
    home = settings.home / "prefect"
    return {
        "PREFECT_HOME": str(home),
        "PREFECT_PROFILES_PATH": str(home / "profiles.toml"),
        "PREFECT_API_URL": settings.prefect_url,
        "PREFECT_UI_URL": settings.prefect_ui,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        # the mover's own runs are not polled for; these are begun in the UI or by a schedule
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        "PREFECT_WORKER_HEARTBEAT_SECONDS": "10",
        "PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED": "false",
        "PREFECT_LOGGING_LEVEL": os.environ.get("PREFECT_LOGGING_LEVEL", "WARNING"),
        # what a run says is on its page; the terminal and our own log have their own lines
        "PREFECT_LOGGING_LOGGERS_PREFECT_FLOW_RUNS_LEVEL": "INFO",
        "PREFECT_LOGGING_LOGGERS_PREFECT_TASK_RUNS_LEVEL": "WARNING",  # their states say when they begin and end
        "PREFECT_SHOW_DEPRECATION_WARNINGS": "false",
        **_secret("PREFECT_API_AUTH_STRING", settings),
        # glibc keeps a heap for each thread, up to eight a core, and each keeps what its threads have freed: with two,
        # ten batches of 10,000 files leave a mover 45 MiB smaller
        "MALLOC_ARENA_MAX": os.environ.get("MALLOC_ARENA_MAX", "2"),
    }


def server_environment(settings: Settings, host: str = "127.0.0.1") -> dict[str, str]:
    """Return the variables of the Prefect server. Its database would grow without end by default.

    Raises: SettingsError when other hosts can reach it and DM_PREFECT_AUTH is not set.
    """
    if settings.prefect_auth is None and not is_loopback(host):
        raise SettingsError(f"DM_PREFECT_AUTH: {host} can be reached from other hosts; set it to user:password")
    base = urlsplit(settings.prefect_ui_url or "").path.rstrip("/")
    return {
        **prefect_environment(settings),
        **_secret("PREFECT_SERVER_API_AUTH_STRING", settings),
        "PREFECT_SERVER_API_HOST": host,
        "PREFECT_SERVER_API_PORT": str(settings.prefect_port),
        # relative: the page is opened as localhost, as 127.0.0.1 and through tunnels, and may ask only where it is from
        "PREFECT_SERVER_UI_API_URL": f"{base}/api",
        "PREFECT_SERVER_UI_SERVE_BASE": f"{base}/",
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": settings.prefect_ui,
        # by default it is copied into the installation, which is read-only in a container or under ProtectSystem=strict
        "PREFECT_UI_STATIC_DIRECTORY": str(settings.home / "prefect" / "ui"),
        "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
        # task runs and events reach its database together: by default each event of a task run is a transaction
        "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "100",
        "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
        "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_BATCH_SIZE": "100",
        "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_FLUSH_INTERVAL": "1",
        "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
    }


def _secret(name: str, settings: Settings) -> dict[str, str]:
    """Return user and password of the Prefect server as a variable, by which no other user of the host sees them."""
    return {} if settings.prefect_auth is None else {name: settings.prefect_auth.get_secret_value()}


def run_with(environment: dict[str, str], module: str, arguments: Sequence[str]) -> None:
    """Replace this process by `python -m module` unless the environment already is what Prefect needs."""
    if all(os.environ.get(name) == value for name, value in environment.items()):
        return
    argv = [sys.executable, "-m", module, *arguments]
    os.execve(sys.executable, argv, {**os.environ, **environment})  # noqa: S606 - ourselves, no shell
