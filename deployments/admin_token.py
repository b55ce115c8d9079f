"""The first token, which permits everything: made on a host that reaches the catalogue, by `dm up` or `dm token
bootstrap`. It is in the file admin-token in DM_HOME, for its owner alone; clients of this host find it there.
"""

from __future__ import annotations

import getpass
import os
import secrets
import socket
import sys

from datamanager.errors import DataManagerError, NotAuthenticated, SettingsError
from datamanager.identity.grant import EVERYBODY, Grant, Means
from datamanager.identity.roles import load_roles
from datamanager.identity.service_token import ServiceToken
from datamanager.identity.token_requests import NAME_MAX
from datamanager.sealing import Sealer
from datamanager.settings import HOME, Settings, load_settings
from models.access.logins import TokenLogins
from models.access.requester import HOST, requested
from models.access.tokens import NewToken, create_token, list_tokens, revoke_token
from models.access.trail import TrailOutcome, note
from models.access.visibility import ALL
from models.database import Database
from models.migrate import require_current

ROLE = "admin"


def main() -> int:
    """Make the token of this host, unless it is there; print where it is, and return the exit code."""
    try:
        settings = load_settings()
        database = Database(settings.catalogue_url)
        try:
            require_current(database)
            provide_admin_token(settings, database)
        finally:
            database.close()
    except DataManagerError as exc:
        sys.stderr.write(f"dm token bootstrap: {exc.detail}\n")
        return 2 if isinstance(exc, SettingsError) else 1
    sys.stdout.write(f"{settings.token_file}\n")
    return 0


def provide_admin_token(settings: Settings, database: Database) -> None:
    """Make the token of this home, unless its file has one that permits everything still. One that was lost is revoked.

    Raises: SettingsError, SecretsUnreadable, CatalogueUnavailable.
    """
    logins = TokenLogins(Sealer.of(settings), load_roles(settings.roles))
    if _permits_everything(settings, database, logins):
        return
    new, name = ServiceToken.make(), _name(settings)
    roles = logins.roles.known([ROLE])
    own = Grant(name, frozenset(), logins.roles.scopes_of(roles), Means.TOKEN).covers(EVERYBODY)
    scopes = () if own else tuple(map(str, EVERYBODY.scopes))
    wanted = NewToken(new.identifier, new.digest(logins.key), name, tuple(roles) if own else (), scopes=scopes)
    with requested("", None, HOST, getpass.getuser()), database.write() as session:
        for token in list_tokens(session, ALL):
            if token.name == name and token.revoked is None:
                revoke_token(session, token.id, ALL, None)
        session.flush()
        create_token(session, wanted, None)
        note(session, "dm token bootstrap", TrailOutcome.DONE, subject=new.identifier)
    _write(settings, new)  # after the row: a crash between leaves a token that nobody has, and that is revoked then


def _name(settings: Settings) -> str:
    """Return the token's name: `USER@HOST`, with the folder where that is not the user's own."""
    name, home = f"{getpass.getuser()}@{socket.gethostname()}", settings.home
    return (name if home == HOME.expanduser() else f"{name}:{home}")[-NAME_MAX:]


def _permits_everything(settings: Settings, database: Database, logins: TokenLogins) -> bool:
    try:
        text = settings.token_file.read_text(encoding="ascii").strip()
        with database.read() as session:
            return logins.grant(session, text).covers(EVERYBODY)
    except (FileNotFoundError, UnicodeDecodeError, NotAuthenticated):
        return False
    except OSError as exc:
        raise SettingsError(f"DM_HOME: {settings.token_file}: {exc.strerror}") from exc


def _write(settings: Settings, token: ServiceToken) -> None:
    """Write the file: it is there whole, or as it was. Raises: SettingsError."""
    file = settings.token_file
    draft = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
    try:
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(handle, "w", encoding="ascii") as out:
                out.write(f"{token.reveal()}\n")
                out.flush()
                os.fsync(out.fileno())
            draft.replace(file)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as exc:
        raise SettingsError(f"DM_HOME: {file}: {exc.strerror}") from exc


if __name__ == "__main__":
    sys.exit(main())
