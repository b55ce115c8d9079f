"""The endpoints that take a request for a transfer: of one object or of many, waiting for its end or as a task.

They have one shape: an object's identifier in the address (not of downloads and batches), a body, then the transfer is
submitted and waited for, or its task is answered. So they are a table.

The README says POST and the original server listened on PUT for archive, activate and getexternal as a task: both do.
Old clients send nothing, or a form.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from api.access.asking import Asked, requires
from api.context import Context, In
from api.http import openapi
from api.http.openapi import BODY, BYTES, OBJECT, PLACE, URL, WAITING, Errors
from api.http.request_parts import object_id_of, read_large_request, read_request
from api.transfers.submit import enqueue, wait_for
from datamanager import errors
from datamanager.domain.states import TransferKind as Kind
from datamanager.identity.grant import Grant
from models.access.permission import NEEDS
from models.submission import TransferRequest
from models.transfers.lookup import REQUEST_OF_KIND

router = APIRouter(prefix="/DM", default_response_class=Response)

WAITED_FOR: Errors = (*WAITING, *BYTES, errors.SourceMissing)
NOT_ARCHIVED: Errors = (
    errors.ObjectNotFound,
    errors.ObjectDeleted,
    errors.ObjectActive,
    errors.ObjectUnknown,
    errors.ObjectBusy,
)
ARCHIVED_WAITED_FOR: Errors = (*BODY, errors.UnknownMachine, *WAITED_FOR, errors.DestinationExists)
OF_A_BATCH: Errors = (errors.UnknownMachine, errors.ObjectNotFound, errors.PathNotAllowed)


@dataclass(frozen=True, slots=True)
class TransferRoute:
    """One endpoint: its method and path, what it does, and its texts in the OpenAPI document.

    `message`: what it answers at the end; None where it is a new object's identifier.
    `twins`: further methods and paths that do the same; the document shows those without a slash at the end.
    """

    address: str
    kind: Kind
    summary: str
    text: str
    errors: Errors
    message: str | None = None
    twins: tuple[str, ...] = ()
    name: str = ""
    """In the operation's identifier; default the kind."""
    found: str = ""
    """Which object it answers instead of a new one, if it may."""


TRANSFERS = (
    TransferRoute(
        "POST /copy/{uuid}",
        Kind.COPY,
        "Copy an object",
        """Copy an object's file to `dest` (directory and name in one) on `machine`.

The copy is a new object with the same originator and group.
Nothing is overwritten unless `overwrite` is true, and never a registered object.""",
        (*OBJECT, *BODY, *PLACE, *WAITED_FOR),
    ),
    TransferRoute(
        "POST /move/{uuid}",
        Kind.MOVE,
        "Move an object",
        "Move an object's file to `dest` (directory and name in one) on `machine`; the object keeps its identifier.",
        (*OBJECT, *BODY, *PLACE, *WAITED_FOR, errors.SourceNotRemoved),
        "Move successful",
    ),
    TransferRoute(
        "DELETE /delete/{uuid}",
        Kind.DELETE,
        "Delete an object's file",
        """Delete an object's file. The object stays listed as DELETED; a file that is already gone is no error.

A file that is not the object's any more (other size or, where the catalogue has it, sha256) is left: `source_changed`.
`force=true` deletes what is there. The part of a bundle that an archived object uses is freed, without connecting to a
machine.""",
        (
            *(errors.ObjectNotFound, errors.ObjectDeleted, errors.ObjectBusy, errors.ObjectHeld),
            *(errors.DestinationExists, errors.UnknownMachine, errors.SourceChanged),
            *BODY,
            *WAITING,
        ),
        "archer2:weather/june.nc deleted",
    ),
    TransferRoute(
        "PUT /getexternal",
        Kind.GETEXTERNAL,
        "Fetch a URL to a new object",
        "Download `url` to a machine. If a `size` is given (not 0) and differs, nothing is published.",
        (*BODY, *PLACE, *URL, *WAITING, *BYTES, errors.DownloadFailed),
        twins=("PUT /getexternal/",),
        found="The identifier of the object of `if_newer_than`: its source is unchanged.",
    ),
)
ARCHIVES = (
    TransferRoute(
        "POST /archive/{uuid}",
        Kind.ARCHIVE,
        "Archive an object",
        """Put an object's file into a bundle on an archive machine; `archived_in` of the object says which.

The bundle is verified before the file is removed. The object's machine and path stay as they were, its place is
free. With `keep_source` the file stays where it is, without an object.""",
        (*ARCHIVED_WAITED_FOR, *OBJECT, errors.SourceNotRemoved),
        "Archive successful",
        ("PUT /archive/{uuid}",),
    ),
    TransferRoute(
        "POST /activate/{uuid}",
        Kind.ACTIVATE,
        "Activate an archived object",
        """Bring an archived object's file back to where it was, or to `dest` on `machine`.

Its checksum is verified before it gets its name. Fine for an object that is ACTIVE there already.""",
        (*ARCHIVED_WAITED_FOR, *NOT_ARCHIVED, errors.PathNotAllowed),
        "Activate successful",
        ("PUT /activate/{uuid}",),
    ),
)
ARCHIVE_TASKS = (
    TransferRoute(
        "POST /async/archive/{uuid}",
        Kind.ARCHIVE,
        "Archive an object as a task",
        "Submit the archiving of an object; the task's `result` is a message.",
        (errors.UnknownMachine, *OBJECT),
        twins=("PUT /async/archive/{uuid}",),
        name="archive_as_task",
    ),
    TransferRoute(
        "POST /async/activate/{uuid}",
        Kind.ACTIVATE,
        "Activate an archived object as a task",
        "Submit the activation of an object; the task's `result` is a message.",
        (errors.UnknownMachine, *NOT_ARCHIVED, errors.PathNotAllowed, errors.DestinationExists),
        twins=("PUT /async/activate/{uuid}",),
        name="activate_as_task",
    ),
    TransferRoute(
        "POST /async/archive",
        Kind.ARCHIVE_MANY,
        "Archive many objects as one task",
        """Submit the archiving of many objects: up to 10,000 `items` (or just identifiers), or all below a `directory`.

They become bundles, one machine's objects each. A failing item fails alone: see the task's items. What is archived
already is skipped, so a batch may be repeated.""",
        OF_A_BATCH,
    ),
    TransferRoute(
        "POST /async/activate",
        Kind.ACTIVATE_MANY,
        "Activate many archived objects as one task",
        """Submit the activation of many objects: up to 10,000 `items` (or just identifiers), or all that were below a
`directory`. Each is restored to its old place, unless it has a `machine` or `dest`.

Those of one bundle are read together, in the order in which they lie there. A failing item fails alone: see the
task's items. What is ACTIVE already is skipped, so a batch may be repeated.""",
        OF_A_BATCH,
    ),
)
TASKS = (
    TransferRoute(
        "POST /async/copy/{uuid}",
        Kind.COPY,
        "Copy an object as a task",
        "Submit a copy; the task's `result` is the new object's identifier.",
        (*OBJECT, *PLACE),
    ),
    TransferRoute(
        "POST /async/move/{uuid}",
        Kind.MOVE,
        "Move an object as a task",
        "Submit a move; the task's `result` is a message.",
        (*OBJECT, *PLACE),
    ),
    TransferRoute(
        "POST /async/getexternal",
        Kind.GETEXTERNAL,
        "Fetch a URL as a task",
        "Submit a download; the task's `result` is the new object's identifier.",
        (*PLACE, *URL),
        twins=("POST /async/getexternal/", "PUT /async/getexternal", "PUT /async/getexternal/"),
    ),
)
BATCHES = tuple(
    TransferRoute(
        f"POST /async/{verb}",
        kind,
        f"{verb.capitalize()} many objects as one task",
        f"""Accept {plural} of many objects: up to 10,000 `items`, or all that lies below a `directory`, up to
100,000 objects.

A failing item fails alone, also one that can't be accepted: see the task's items. What is already at its
destination is skipped, so a batch may be repeated.""",
        OF_A_BATCH,
    )
    for verb, plural, kind in (("copy", "copies", Kind.COPY_MANY), ("move", "moves", Kind.MOVE_MANY))
)

Submit = Callable[[Context, Request, TransferRequest], Awaitable[Response]]


def _handler(kind: Kind, submit: Submit, *, of_object: bool) -> Callable[..., Awaitable[Response]]:
    """Return the function that serves an endpoint; FastAPI reads its parameters."""
    model, read = REQUEST_OF_KIND[kind], read_large_request if kind.many else read_request

    async def serve(request: Request, context: Context, asked: Grant, object_id: UUID | None = None) -> Response:
        fields = await read(request, model)
        return await submit(context, request, TransferRequest(kind, fields, object_id, grant=asked))

    async def of_one(uuid: str, request: Request, context: In, asked: Asked) -> Response:
        return await serve(request, context, asked, object_id_of(uuid))

    async def of_none(request: Request, context: In, asked: Asked) -> Response:
        return await serve(request, context, asked)

    return of_one if of_object else of_none


def _add(tag: str, endpoint: TransferRoute, submit: Submit) -> None:
    """Add an endpoint to the router: one that waits (`submit` is `wait_for`), or one that answers a task."""
    path = endpoint.address.partition(" ")[2]
    waits, kind = submit is wait_for, endpoint.kind
    answers: dict[int | str, Any] = openapi.task(status=202)
    if not waits:
        answers |= openapi.task(status=200) | openapi.problems(*BODY, *endpoint.errors)
    elif endpoint.message is None:
        answers |= openapi.object_created(*endpoint.errors, found=endpoint.found)
    else:
        answers |= openapi.message(endpoint.message, *endpoint.errors)
    prefer = openapi.WAIT if waits else openapi.RESPOND_ASYNC
    handler, name = _handler(kind, submit, of_object="{uuid}" in path), endpoint.name or kind.value
    for address in (endpoint.address, *endpoint.twins):
        method, _, path = address.partition(" ")
        router.add_api_route(
            path,
            handler,
            methods=[method],
            dependencies=[requires(*dict.fromkeys((*NEEDS[kind].source, *NEEDS[kind].destination)))],
            name=name,
            tags=[tag],
            summary=endpoint.summary,
            description=endpoint.text,
            status_code=201 if 201 in answers else None,
            responses=answers,
            include_in_schema=not path.endswith("/"),
            openapi_extra=openapi.body(REQUEST_OF_KIND[kind], forms=not kind.many, prefer=prefer),
        )


for _tag, _submit, _endpoints in (
    ("transfers", wait_for, TRANSFERS),
    ("archives", wait_for, ARCHIVES),
    ("archives", enqueue, ARCHIVE_TASKS),
    ("tasks", enqueue, TASKS),
    ("batches", enqueue, BATCHES),
):
    for _endpoint in _endpoints:
        _add(_tag, _endpoint, _submit)
