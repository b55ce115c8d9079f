"""Register: enter a file that lies on a machine into the catalogue, or all files below a directory at once."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass
from typing import Annotated
from uuid import UUID

import structlog
from fastapi import APIRouter
from sqlalchemy.orm import Session as CatalogueSession
from starlette.requests import Request
from starlette.responses import Response

from api.access.asking import requires
from api.context import Context, In
from api.http import openapi
from api.http.idempotency import Slot, once
from api.http.operations import note_operation
from api.http.request_parts import read_request
from api.http.responses import object_answer
from api.machines.caller_storages import acting_for
from api.objects.own_files import own_files, require_own_file
from api.objects.tree_answer import TreeRegistration
from api.objects.views import TreeView
from datamanager import errors
from datamanager.domain.fields import require_metadata_fits
from datamanager.domain.location import Place, normalised_prefix, require_outside_archive
from datamanager.domain.requests import RegisterRequest, TreeRequest
from datamanager.domain.states import Verified
from datamanager.engine.attempt import Endpoint
from datamanager.engine.inspection.directory_walk import Walk, tree_root
from datamanager.engine.path_confinement import canonical_of, confined, followed, real_base
from datamanager.engine.single.other_names import bundles_directory, has_other_spelling
from datamanager.engine.single.verify import stored_sha256
from datamanager.identity.grant import Grant
from datamanager.machines import Machine
from datamanager.transports.port import Session, Storage
from datamanager.transports.values import FileKind
from models.access.permission import maker, require_place
from models.objects.catalogue import Facts, FoundFile, register_object
from models.objects.namesakes import has_namesake
from models.transfers.reservations import require_room

router = APIRouter(prefix="/DM", tags=["objects"], default_response_class=Response)

ACTION = "write:objects"
MayWrite = Annotated[Grant, requires(ACTION)]
log = structlog.get_logger(__name__)

_AWAY = (errors.MachineUnavailable, errors.ConnectionLost, errors.TransportTimeout)


@router.put(
    "/register",
    summary="Register a file",
    status_code=201,
    responses=openapi.object_created(
        *openapi.BODY,
        *openapi.PLACE,
        *openapi.MACHINE,
        *_AWAY,
        errors.RegisteredSizeMismatch,
        errors.SourceMissing,
        errors.SourceChanged,
    ),
    openapi_extra=openapi.body(RegisterRequest),
)
async def register(request: Request, context: In, asked: MayWrite) -> Response:
    """Register a file that exists on a machine.

    By default (`verify=stat`) the file must exist there and have the `size` given (0, empty or absent: unknown).
    `verify=hash` also records its sha256, `verify=none` checks nothing of the file. A file has one object, by
    whatever links it is reached. If the machine cannot be reached, the object is registered with `verified: none`.
    """
    fields = await read_request(request, RegisterRequest)
    require_metadata_fits(fields.metadata, context.settings.max_metadata)

    async def work(slot: Slot) -> Response:
        async with acting_for(context, request) as acting:
            return object_answer(request, slot.subject or await _register(acting, request, fields, slot, asked))

    return await once(context, request, fields, work)


async def _register(context: Context, request: Request, fields: RegisterRequest, slot: Slot, asked: Grant) -> UUID:
    machine = context.machines[fields.machine]
    place = Place.of(machine, fields.path, fields.filename)
    require_place(asked, place, fields.group, ACTION)
    end = Endpoint(place, machine, context.storages.get(machine.name))
    seen = Seen(Facts(fields.size))
    try:
        seen = await context.on_machine(machine.name, lambda: look(fields, end), long=fields.verify == "hash")
    except errors.MachineUnavailable:  # too much waits for it already
        if fields.verify != "none":
            raise

    def enter(session: CatalogueSession) -> UUID:
        new = register_object(
            session, fields, place, seen.facts, by=asked, canonical=seen.canonical, provisional=seen.canonical is None
        )
        for one in (place, seen.canonical or place):  # a bundle's own place was claimed
            require_outside_archive(machine, one.path)
            require_outside_archive(machine, one.path, seen.bundles)
        slot.attach(session, new)
        note_operation(session, request, object_id=new)
        require_room(session, context.quotas, maker(asked), fields.group, [seen.facts.size])
        return new

    def enter_first(session: CatalogueSession) -> UUID | None:
        return None if has_namesake(session, place) else enter(session)

    new = None
    if seen.canonical is not None and not seen.folds:
        # hardly ever is there an object of that name, so this is looked up where it is entered
        new = await context.writing(enter_first)
    if new is None:
        if seen.canonical is not None:
            await context.on_machine(machine.name, lambda: require_own_file(context, end, asked))
        new = await context.writing(enter)
    context.notify_relay()
    return new


@dataclass(frozen=True, slots=True)
class Seen:
    """What a look at a file brought. `canonical`: its place, another one than it was asked by where linked directories
    lead to it; None when its machine could not be looked at. `bundles`: where the machine's bundles are
    (`bundles_directory`). `folds`: the machine finds it by another spelling too.
    """

    facts: Facts
    canonical: Place | None = None
    bundles: str | None = None
    folds: bool = False


def look(request: RegisterRequest, end: Endpoint) -> Seen:
    """Look at the file as `request.verify` asks; blocks, for long when the file is to be hashed.

    A machine that can't be reached proves nothing and prevents nothing: the facts then are the client's own. With
    `verify=none` one that can't be used counts as one that can't be reached.

    Raises: SourceMissing (no regular file there), RegisteredSizeMismatch, PathNotAllowed (a link leads out),
    SourceChanged (while it was hashed), and the errors of a machine that answers but can't be used.
    """
    facts, unseen, machine, place = Facts(request.size), request.verify == "none", end.machine, end.place
    try:
        with end.storage.session() as session:
            base = real_base(session, machine)
            own = confined(session, machine, place.path, follow=False, base=base)
            if not unseen:
                facts = _seen(request, session, machine, own, place)
            canonical = Place(machine.name, canonical_of(machine, base, own))
    except errors.TransportError as exc:
        if isinstance(exc, errors.PathMissing) and not unseen:
            raise errors.SourceMissing(f"there is no file at {place}") from None
        if not (unseen or isinstance(exc, _AWAY)):
            raise
        log.warning("registered_unverified", machine=machine.name, code=exc.code)
        return Seen(Facts(request.size))
    with end.storage.session() as session:
        bundles = bundles_directory(session, machine)
        return Seen(facts, canonical, bundles, has_other_spelling(session, machine, [place.path], base))


def _seen(request: RegisterRequest, session: Session, machine: Machine, own: str, place: Place) -> Facts:
    path, found = own, session.lstat(own)
    if found.kind is FileKind.SYMLINK:
        path = followed(session, machine, real_base(session, machine), place.path, own)
        found = session.stat(path)
    if found.kind is not FileKind.FILE:
        raise errors.SourceMissing(f"{place} is a {found.kind.value}, not a regular file")
    if request.size is not None and request.size != found.size:
        raise errors.RegisteredSizeMismatch(f"size: {request.size} was given, {place} has {found.size} bytes")
    facts = Facts(found.size, verified=Verified.SIZE)
    if request.verify == "stat":
        return facts
    digest = stored_sha256(session, path)
    if session.stat(path) != found:
        raise errors.SourceChanged(f"{place} changed while it was hashed")
    return facts._replace(checksum=f"sha256:{digest}", verified=Verified.SHA256)


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
        *_AWAY,
        status=201,
    ),
    openapi_extra=openapi.body(TreeRequest),
)
async def register_tree(request: Request, context: In, asked: MayWrite) -> Response:
    """Register every regular file below a directory of a machine, as one object each.

    Links are not followed. Registered files are skipped, under other names too. With more than `max_files` files
    nothing is registered.

    Files are registered 500 at a time, and the answer is streamed: `objects` come as they are registered. If that fails
    in the middle, what is registered stays so, and the answer ends with `left`, the number of files that are not, and
    `error`, a problem document; the same request again registers the rest. With an `Idempotency-Key` the answer is sent
    when all is registered, or the problem document, with `objects` and the counts, is the answer; it is not kept.
    """
    fields = await read_request(request, TreeRequest)
    require_metadata_fits(fields.metadata, context.settings.max_metadata)

    # nothing is attached to the key: a repetition finds by itself what an interrupted attempt has registered
    async def work(slot: Slot) -> Response:
        async with acting_for(context, request) as acting:
            tree = await _walk_tree(acting, request, fields, asked)
        return await (tree.whole() if slot.key else tree.stream())  # what is kept for a key must be whole

    return await once(context, request, fields, work)


async def _walk_tree(context: Context, request: Request, fields: TreeRequest, asked: Grant) -> TreeRegistration:
    machine = context.machines[fields.machine]
    prefix = normalised_prefix(machine, f"{fields.path}/" if fields.path else "")
    require_place(asked, Place(machine.name, prefix), fields.group, ACTION)
    require_outside_archive(machine, prefix)
    storage = context.storages.get(machine.name)
    walk = Walk(fields.max_files)
    walked = await context.on_machine(
        machine.name, lambda: _walked(fields, asked, machine, storage, prefix, walk), long=True
    )
    end = Endpoint(Place(machine.name, prefix), machine, storage)
    files = await context.on_machine(machine.name, lambda: own_files(context, end, walked), long=True)
    return TreeRegistration(context, request, fields, asked, files, walk, len(walked) - len(files))


def _walked(
    fields: TreeRequest, asked: Grant, machine: Machine, storage: Storage, prefix: str, walk: Walk
) -> list[FoundFile]:
    """Walk the tree; blocks. A path is as the client gave it as far as the client gave it."""
    proved = Verified.SIZE if fields.verify == "stat" else Verified.NONE
    given = fields.path.rstrip("/") if fields.path.strip("/") else fields.path
    found = []
    with storage.session() as session:
        root, canonical = tree_root(session, machine, prefix)
        require_place(asked, Place(machine.name, canonical), fields.group, ACTION)
        above, real, shown = (posixpath.join(one, "") if one else "" for one in (prefix, canonical, given))
        for path, stat in walk.files(session, root, prefix):
            directory = posixpath.dirname(path)
            place = Place(machine.name, above + path)
            found.append(
                FoundFile(
                    place=place,
                    path=shown + directory if directory else given,
                    facts=Facts(stat.size, verified=proved),
                    canonical=place if real == above else Place(machine.name, real + path),
                )
            )
    return found
