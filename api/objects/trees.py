"""Trees: enter all files below a directory into the catalogue at once."""

from __future__ import annotations

import posixpath

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from api.context import Context, In
from api.http import openapi
from api.http.bodies import read_request
from api.http.idempotency import Slot, once
from api.http.responses import json_response
from api.objects.views import TreeView
from datamanager import errors
from datamanager.domain.location import Place, normalised_prefix
from datamanager.domain.requests import TreeRequest
from datamanager.domain.states import Verified
from datamanager.engine.inspection.directory_walk import Walk, tree_root
from datamanager.machines import Machine
from datamanager.transports.port import Storage
from models.objects.bulk import FoundFile, register_files
from models.objects.catalogue import Facts

router = APIRouter(prefix="/DM", tags=["objects"], default_response_class=Response)


@router.post(
    "/register/tree",
    summary="Register a directory's files",
    status_code=201,
    responses=openapi.json_answer(
        TreeView,
        "The number of files by result.",
        *openapi.BODY,
        *openapi.MACHINE,
        errors.UnknownMachine,
        errors.PathNotAllowed,
        errors.SourceMissing,
        errors.MachineUnavailable,
        errors.ConnectionLost,
        errors.TransportTimeout,
        status=201,
    ),
    openapi_extra=openapi.body(TreeRequest),
)
async def register_tree(request: Request, context: In) -> Response:
    """Register every regular file below a directory of a machine, as one object each.

    Links are not followed. Registered files are skipped. With more than `max_files` files
    nothing is registered.
    """
    fields = await read_request(request, TreeRequest)

    # nothing is attached to the key: a repetition finds by itself what an interrupted attempt has registered
    async def work(_: Slot) -> Response:
        return json_response(await _register(context, fields), 201)

    return await once(context, request, fields, work)


async def _register(context: Context, fields: TreeRequest) -> TreeView:
    machine = context.machines[fields.machine]
    prefix = normalised_prefix(machine, f"{fields.path}/" if fields.path else "")
    storage = context.storages.get(machine.name)
    walk = Walk(fields.max_files)
    files = await context.remotely(lambda: _walked(fields, machine, storage, prefix, walk))
    rows = await context.writing(lambda session: register_files(session, files, fields)) if files else []
    context.notify_relay()
    return {
        "registered": len(rows),
        "already": len(files) - len(rows),
        "skipped": walk.skipped,
        "unnameable": walk.unnameable,
        "objects": [
            {"uuid": str(row.id), "path": row.path, "filename": row.place.name, "size": row.facts.size} for row in rows
        ],
    }


def _walked(fields: TreeRequest, machine: Machine, storage: Storage, prefix: str, walk: Walk) -> list[FoundFile]:
    """Walk the tree; blocks. A path is as the client gave it as far as the client gave it."""
    proved = Verified.SIZE if fields.verify == "stat" else Verified.NONE
    given = fields.path.rstrip("/") if fields.path.strip("/") else fields.path
    found = []
    with storage.session() as session:
        root, canonical = tree_root(session, machine, prefix)
        for path, stat in walk.files(session, root, prefix):
            directory = posixpath.dirname(path)
            found.append(
                FoundFile(
                    place=Place(machine.name, posixpath.join(prefix, path)),
                    path=posixpath.join(given, directory) if directory else given,
                    facts=Facts(stat.size, verified=proved),
                    canonical=Place(machine.name, posixpath.join(canonical, path)),
                )
            )
    return found
