"""Files that are to be registered, compared with those that objects have already under names that no link explains:
bind mounts, spellings that the machine folds, other machine names of its host. All of it blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from api.context import Context
from datamanager.domain.location import Place, require_outside_archive
from datamanager.engine.attempt import Endpoint
from datamanager.engine.path_confinement import real_base
from datamanager.engine.single.other_names import bundles_directory, has_other_spelling, may_be_mounted_twice
from datamanager.engine.single.same_file import same_files, second_names
from datamanager.errors import DestinationExists, PathNotAllowed
from datamanager.identity.grant import Grant
from datamanager.machines import Machine
from models.objects.catalogue import FoundFile
from models.objects.namesakes import namesakes

SAMPLE = 50
"""Files of a tree by which it is judged whether its machine folds names."""


def require_own_file(context: Context, end: Endpoint, asked: Grant) -> None:
    """Check that a file is none that a registered object has under another name. Raises: DestinationExists, with that
    name for who may read all objects; what the transports raise.
    """
    for same in same_files([end], _others(context, end, [end.place])).values():
        name = f"the registered object {same}" if asked.may("read:objects") else "a registered object"
        raise DestinationExists(f"{end.place} is the file of {name}")


def own_files(context: Context, end: Endpoint, files: Sequence[FoundFile]) -> list[FoundFile]:
    """Return those of a tree's files that no registered object, and none before in the tree, has under another name,
    and that are no bundles. `end` is any place of their machine. Raises: what the transports raise.
    """
    with end.storage.session() as session:
        bundles = bundles_directory(session, end.machine)
        found = [file for file in files if not _is_bundle(end.machine, file.canonical, bundles)]
        if may_be_mounted_twice(session, end.machine) is not False:
            base = real_base(session, end.machine)
            paths = {number: f"{base.rstrip('/')}/{file.canonical.path}" for number, file in enumerate(found)}
        else:
            paths = {}
    second = second_names(dict.fromkeys(paths, end), paths, ())
    found = [file for number, file in enumerate(found) if number not in second]
    others = _others(context, end, [file.place for file in found])
    if not others:
        return found
    same = same_files([replace(end, place=file.place) for file in found], others)
    return [file for file in found if file.place not in same]


def _others(context: Context, end: Endpoint, places: Sequence[Place]) -> list[Endpoint]:
    """Return where else its host may have these files: on their machine, if a file there may have two names, and on
    machines that are other names of the host.
    """
    machines = {name: one for name, one in context.machines.items() if one.host == end.machine.host}
    with end.storage.session() as session:
        folding = has_other_spelling(session, end.machine, [place.path for place in places[:SAMPLE]])
    with context.database.read() as catalogue:
        found = namesakes(catalogue, places, folding=[end.machine.name] if folding else [])
    if not folding and any(place.machine == end.machine.name for place in found):
        with end.storage.session() as session:
            if may_be_mounted_twice(session, end.machine) is False:
                del machines[end.machine.name]
    there = [place for place in found if place.machine in machines]
    return [Endpoint(place, machines[place.machine], context.storages.get(place.machine)) for place in there]


def _is_bundle(machine: Machine, place: Place, bundles: str | None) -> bool:
    try:
        require_outside_archive(machine, place.path)
        require_outside_archive(machine, place.path, bundles)
    except PathNotAllowed:
        return True
    return False
