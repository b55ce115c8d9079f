"""One file, one object: whether a file that is to be replaced, removed or accepted is that of another object, under
another name. The catalogue knows names, the machines know files. All of it blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol
from uuid import UUID

from datamanager.domain.location import Place, require_outside_archive
from datamanager.engine.attempt import Attempt, Endpoint
from datamanager.engine.path_confinement import confined, relative
from datamanager.engine.single.other_names import bundles_directory, has_other_spelling, require_no_bundles
from datamanager.engine.single.same_file import same_files, second_names
from datamanager.errors import DataManagerError, DestinationExists, PathNotAllowed
from datamanager.transports.values import FileStat
from flows.runtime.transfer_run import TransferRun
from models.objects.namesakes import namesakes
from models.tables import DataObject
from models.transfers.settlement import settle, unsettled


def registered_files(run: TransferRun, jobs: Mapping[int, Attempt]) -> dict[int, DestinationExists]:
    """Return which of these jobs' destinations, where files lie, are files of registered objects or bundles, whatever
    they are called there.

    Raises: what the transports raise of the destinations' machines; CatalogueUnavailable.
    """
    if not jobs:
        return {}
    ends = [job.target for job in jobs.values()]
    sources = {job.target.place: job.source.place for job in jobs.values() if job.source is not None}
    same = same_files(ends, _namesakes(run, ends), sources)  # its own source was compared by the probe
    return {
        number: _of_another(job.target.place, same[job.target.place])
        for number, job in jobs.items()
        if job.target.place in same
    }


class Destination(Protocol):
    """Where the file of a transfer is to be: `final` and `taken` as in `engine.attempt.Found`, `canonical` below
    base_dir."""

    @property
    def final(self) -> str:
        """Its absolute path, links resolved."""

    @property
    def canonical(self) -> str:
        """The same, below the base directory."""

    @property
    def taken(self) -> bool:
        """Whether a file lies there."""


def require_object_place(end: Endpoint, canonical: str) -> None:
    """Check that an object may be at a canonical place: not among an archive's bundles. Raises: PathNotAllowed."""
    if end.machine.archive:
        with end.storage.session() as session:
            require_no_bundles(session, end.machine, canonical)


def refused_destinations(
    run: TransferRun,
    jobs: Mapping[int, Attempt],
    destinations: Mapping[int, Destination],
    machines: Mapping[int, str],
) -> dict[int, DataManagerError]:
    """Return which items of a batch can't have their destinations, by number: a file there is that of a registered
    object, or of an item before it, under another name; or links lead to where no object may be. `machines`: those of
    the destinations.

    Raises: as `registered_files`.
    """
    refused, bundles = dict[int, DataManagerError](), dict[str, str | None]()
    for number, one in destinations.items():
        machine = run.parts.machines[machines[number]]
        if not machine.archive:
            continue
        try:
            if machine.name not in bundles:
                with run.storage(machine.name).session() as session:
                    bundles[machine.name] = bundles_directory(session, machine)
            require_outside_archive(machine, one.canonical)
            require_outside_archive(machine, one.canonical, bundles.get(machine.name))
        except PathNotAllowed as error:
            refused[number] = error
    taken = [number for number, one in destinations.items() if one.taken and number not in refused]
    refused |= registered_files(run, {number: jobs[number] for number in taken})
    paths = {number: one.final for number, one in destinations.items() if number not in refused}
    ends = {machines[number]: jobs[number].target for number in {machines[number]: number for number in paths}.values()}
    left = {number: ends[machines[number]] for number in paths}
    for number, first in second_names(left, paths, [number for number in taken if number in left]).items():
        what = f"{jobs[number].target.place} and {jobs[first].target.place} (item {first}) are the same file"
        refused[number] = DestinationExists(what)
    return refused


def late_arrivals(
    run: TransferRun, jobs: Mapping[int, Attempt], destinations: Mapping[int, Destination]
) -> dict[int, DestinationExists]:
    """Look once more, just before files get their names with `overwrite`: return which destinations have got a
    registered object's file since the first look.

    Raises: as `registered_files`.
    """
    by_machine: dict[str, list[int]] = {}
    for number, one in destinations.items():
        if jobs[number].overwrite and not one.taken:
            by_machine.setdefault(jobs[number].target.machine.name, []).append(number)
    late = dict[int, Attempt]()
    for name, numbers in by_machine.items():
        with run.storage(name).session() as session:
            for index, found in session.bulk.lstat([destinations[number].final for number in numbers]):
                if isinstance(found, FileStat):
                    late[numbers[index]] = jobs[numbers[index]]
    return registered_files(run, late)


def settle_places(run: TransferRun, objects: Iterable[UUID]) -> dict[UUID, DataManagerError]:
    """Settle the provisional places among those of some objects, whose files are to go; return why one can't be: the
    file is another object's, or lies where none can be registered.

    Raises: what is worth trying again; LeaseLost, CatalogueUnavailable.
    """
    failed = dict[UUID, DataManagerError]()
    for row in run.read(unsettled, objects):
        try:
            _settle(run, row)
        except DataManagerError as error:
            if error.retryable:
                raise
            failed[row.id] = error
    return failed


def require_settled(run: TransferRun) -> None:
    """Settle the place of the transfer's object. Raises: why it can't be; see `settle_places`."""
    for error in settle_places(run, [run.row.object_id] if run.row.object_id is not None else []).values():
        raise error


def _settle(run: TransferRun, row: DataObject) -> None:
    end = run.end_at(Place(row.machine, row.place))
    with end.storage.session() as session:
        own = confined(session, end.machine, row.place, follow=False)
        canonical = Place(row.machine, relative(session, end.machine, own))
        require_no_bundles(session, end.machine, canonical.path)
    for same in same_files([end], _namesakes(run, [end], row)).values():
        raise _of_another(end.place, same)
    run.write_now(settle, row.id, canonical)


def _namesakes(run: TransferRun, ends: Sequence[Endpoint], rivals_of: DataObject | None = None) -> list[Endpoint]:
    """Return where else files of these names are."""
    by_machine: dict[str, list[str]] = {}
    for end in ends:
        by_machine.setdefault(end.machine.name, []).append(end.place.path)
    folding = list[str]()
    for name, paths in by_machine.items():
        with run.storage(name).session() as session:
            if has_other_spelling(session, run.parts.machines[name], paths):
                folding.append(name)
    found = run.read(namesakes, [end.place for end in ends], folding=folding, rivals_of=rivals_of)
    return [run.end_at(place) for place in found if place.machine in run.parts.machines]


def _of_another(place: Place, same: Place) -> DestinationExists:
    return DestinationExists(f"{place} is the file of the registered object {same}; nothing was changed")
