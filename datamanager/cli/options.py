"""The options of commands: a flag for each field of `Settings`, with its description as help; and the client of the
service that the settings name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import typer

from datamanager.client import Client
from datamanager.settings import PREFIX, Settings, load_settings

C = TypeVar("C", bound=Client)

SETTINGS = {name: " ".join((field.description or "").split()) for name, field in Settings.model_fields.items()}
"""The description of each setting, in one line."""


def connected(kind: type[C]) -> C:
    """Return a client of the service."""
    settings = load_settings()
    return kind(settings.api_url, ca_file=settings.ca_file)


def name_value(text: str) -> tuple[str, str]:
    """Return the parts of NAME=VALUE."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise typer.BadParameter(f"{text!r}: must be NAME=VALUE")
    return name, value


def flag(name: str) -> str:
    """Return a setting's flag."""
    return f"--{name.replace('_', '-')}"


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Add a flag for each setting to a command, which is called with the resulting environment and its own options.

    The settings are validated first. Raises: SettingsError.
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
