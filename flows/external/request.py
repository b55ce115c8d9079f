"""What a download needs besides its stored request: its secrets, and the stored credential that it names.

Both are read when they are used and stored nowhere else: not in a run, a parameter, a log or an event.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import httpx
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound, PrefectException
from pydantic import SecretStr

from datamanager.domain.requests import GetExternalRequest
from datamanager.errors import CredentialUnknown, InternalError, OrchestratorUnavailable
from datamanager.sealing import Sealer
from datamanager.sources.terms.credentials import (
    Credential,
    credential_name,
    read_credential,
    variable_end,
    with_credential,
)
from datamanager.sources.terms.request_secrets import joined
from flows.runtime.transfer_run import TransferRun
from models.transfers.lookup import sealed_of

BLOCK_TYPE = "secret"


async def whole_request(work: TransferRun) -> GetExternalRequest:
    """Return the transfer's request with its secrets, and with the options of the credential that it names.

    Raises: SecretsUnreadable; CredentialUnknown, CredentialUnusable; CredentialNotAllowed, before anything is sent;
    OrchestratorUnavailable when Prefect, which may know the credential, does not answer.
    """
    request = work.request
    if not isinstance(request, GetExternalRequest):
        raise InternalError("only getexternal downloads")

    def opened() -> GetExternalRequest:
        blob = work.read(sealed_of, work.transfer)
        return request if blob is None else joined(request, Sealer.of(work.parts.settings).open(blob))

    whole = await asyncio.to_thread(opened)
    name = credential_name(whole.options)
    return whole if name is None else with_credential(whole, await stored_credential(name, work.parts.credentials))


async def stored_credential(name: str, here: Mapping[str, SecretStr]) -> Credential:
    """Return a stored credential: of the mover's environment (`here`), or else of a Prefect Secret block.

    Raises: CredentialUnknown, CredentialUnusable, OrchestratorUnavailable.
    """
    found = here.get(variable_end(name))
    if found is not None:
        return read_credential(name, found.get_secret_value())
    try:
        async with get_client() as client:
            block = await client.read_block_document_by_name(name, BLOCK_TYPE)
    except ObjectNotFound:
        raise CredentialUnknown(f"credential {name} is defined neither for the mover nor in Prefect") from None
    except (httpx.HTTPError, PrefectException) as exc:
        raise OrchestratorUnavailable(f"Prefect does not answer the request for credential {name}") from exc
    return read_credential(name, block.data.get("value"))
