"""The settings as flags: every field of `Settings`, described once for `dm … --help` and for the README's table."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from datamanager.settings import PREFIX, Settings, load_settings

SETTINGS: dict[str, str] = {
    "home": "Folder of the catalogue, Prefect's state, logs, sockets and machines.toml; on a local file system.",
    "host": "Address that the API listens on. Another than loopback needs `insecure_bind`.",
    "port": "Port of the API.",
    "insecure_bind": "`1` lets the API be reachable from other hosts, although there is no authentication yet.",
    "allowed_hosts": "Further host names under which clients may address the API, comma-separated.",
    "prefect_port": "Port of the embedded Prefect server and its UI, on 127.0.0.1.",
    "prefect_api_url": "An existing Prefect server (`http://host:4200/api`) instead of the embedded one.",
    "database_url": "The catalogue: `sqlite:////path/file.db` or `postgresql://user:password@host/name`; "
    "default SQLite in `home`.",
    "amqp_url": "RabbitMQ, `amqp://user:password@host/vhost`; not set: no broker is needed.",
    "machines": "Path of machines.toml; default `machines.toml` in `home`, written at the first start.",
    "download_allow": "Hosts, CIDRs or host:port that getexternal may fetch from although they are not public, "
    "comma-separated.",
    "download_deny": "Hosts (with all names below them), CIDRs, host:port or :port that getexternal never fetches "
    "from, whatever is allowed; comma-separated.",
    "download_insecure": "`1` permits requests to fetch without verifying TLS certificates.",
    "max_download": "Largest download in bytes.",
    "secrets_key": "The key that secrets of requests are sealed with; default `secrets.key` in `home`, made when it is "
    "first needed. Hosts that share a catalogue need the same one.",
    "archive_to": "The archive machine of requests that name none; not set: the only one that there is.",
    "archive_groups": "The archive machines of groups that have their own, as group=machine, comma-separated.",
    "bundle_size": "Bytes up to which objects archived together share a bundle; a larger one has its own.",
    "retention": "Path of retention.toml, the rules by which old objects are archived or deleted; default "
    "`retention.toml` in `home`. No file: no rules.",
    "reclaim": "`0` keeps bundles that no object needs any more; else a mover removes them.",
    "concurrency": "Transfers that one mover runs at once.",
    "lease": "Seconds that a mover may be silent until its transfers go to another one.",
    "heartbeat": "Seconds between two signs of life of a mover; at most half of `lease`.",
    "stop_grace": "Seconds that a mover told to stop lets its transfers run before it hands them back to the queue.",
    "max_attempts": "How often a transfer may be taken by a mover before it ends in ERROR.",
    "idempotency_keep": "Seconds that answers to an Idempotency-Key are kept.",
    "keep_transfers": "Seconds that ended transfers are kept.",
    "keep_outbox": "Seconds that sent messages are kept.",
    "confirm_base_dir": "`1` accepts that a machine's base_dir changed although the catalogue has objects there.",
}
"""What each setting means. A duration is seconds, or ISO 8601 (`P90D`)."""


def flag(name: str) -> str:
    """Return a setting's flag."""
    return f"--{name.replace('_', '-')}"


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command a flag for each setting; it is called with the environment that the flags mean, and with its own
    further options.

    The settings are checked before. Raises: SettingsError.
    """

    own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]

    def run(**flags: Any) -> None:
        options = {option.name: flags.pop(option.name) for option in own}
        given = {name: _text(value) for name, value in flags.items() if value is not None}
        load_settings(**given)
        command({PREFIX + name.upper(): value for name, value in given.items()}, **options)

    run.__doc__, run.__name__ = command.__doc__, command.__name__
    run.__signature__ = inspect.Signature([*own, *map(_parameter, Settings.model_fields)])  # type: ignore[attr-defined]
    return run


def _text(value: Any) -> Any:
    return str(int(value)) if isinstance(value, bool) else value


def _parameter(name: str) -> inspect.Parameter:
    field = Settings.model_fields[name]
    yes_or_no = field.annotation is bool
    names = f"{flag(name)}/--no-{flag(name)[2:]}" if field.default is True else flag(name)
    option = typer.Option(
        names, help=f"{SETTINGS[name]} [{PREFIX}{name.upper()}]", metavar=None if yes_or_no else "VALUE"
    )
    kind: Any = bool | None if yes_or_no else str | None
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, option])
