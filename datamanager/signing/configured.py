"""The signer that the settings mean."""

from __future__ import annotations

from datamanager.errors import SettingsError
from datamanager.machines import Machines
from datamanager.settings import Settings
from datamanager.signing.builtin_ca import BuiltinCa
from datamanager.signing.signer import Signer
from datamanager.signing.vault_signer import VaultSigner


def signer_of(settings: Settings) -> Signer | None:
    """Return the signer, None when none is configured. Nothing is connected. Raises: SettingsError."""
    url, role, token = settings.vault_url, settings.vault_role, settings.vault_token
    if url is not None and role is not None and token is not None:
        return VaultSigner(url, role, token, mount=settings.vault_mount, ca_file=settings.vault_ca)
    if settings.ssh_ca is None and not settings.ssh_ca_file.exists():
        return None
    return BuiltinCa(settings.ssh_ca_file)


def signer_for(settings: Settings, machines: Machines) -> Signer | None:
    """Return the signer that the machines need, None when they need none.

    Raises: SettingsError when it can't be used, or there is none: such a machine is never used with a shared account.
    """
    if not machines.of_callers:
        return None
    signer = signer_of(settings)
    if signer is None:
        where = f"machines.{machines.of_callers[0]}.acts_as"
        raise SettingsError(f'{where}: "caller" needs a certificate authority: run dm machine ca, or set DM_VAULT_URL')
    return signer
