"""Archiving beside copying, and recalling beside copying back: what is compared, by the name that `--only` takes."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial

from benchmarks.archive.mix import Mix
from benchmarks.archive.ours import Archiving
from benchmarks.archive.scale import Scale
from benchmarks.figures.files import MB, one_file
from benchmarks.race import Claim, Contender, Race
from benchmarks.servers import Stage
from datamanager.domain.bundle_model import Pack
from datamanager.domain.states import Route
from datamanager.engine.bulk.bulk_chunk import SMALL
from datamanager.machines import VerifyPolicy
from flows.batch.chunk import AT_ONCE

COPY, COPY_IN_TURN = "copy, sha256", "copy, sha256, large files in turn"
TAR, ZST = "archive, checksums", "archive, checksums, tar.zst"
RECALL = "recall"
WANTED = 0.8


@contextmanager
def mix(group: str, sizes: Callable[[Scale], list[int]], stage: Stage, scale: Scale) -> Iterator[Race]:
    """Archive files of one machine on another, and copy them there; both are reached by SSH."""
    with Archiving([stage.machine, stage.second_machine], stage.control) as engine:
        files = Mix(stage, engine, sizes(scale))
        files.write()
        contenders = [
            Contender(COPY, lambda: files.copy(AT_ONCE), engine.connect),
            Contender(TAR, lambda: files.archive(Pack.TAR), engine.connect),
            Contender(ZST, lambda: files.archive(Pack.TAR_ZST), engine.connect),
        ]
        in_turn = any(size > SMALL for size in files.sizes)
        if in_turn:
            contenders.append(Contender(COPY_IN_TURN, lambda: files.copy(1), engine.connect))
        claims = [Claim(f"archive, {group} files", TAR, COPY, WANTED, COPY_IN_TURN if in_turn else "")]
        try:
            yield Race(group, sum(files.sizes) / MB, "MB", contenders, claims, files.reset, files.check, baseline=COPY)
        finally:
            files.remove()


@contextmanager
def recall(stage: Stage, scale: Scale) -> Iterator[Race]:
    """Bring one large member of a bundle back, and copy the file that it was from the same machine."""
    there, back = stage.second_machine, (stage.machine, "back")
    with (
        one_file(stage.other / "file", stage.far / "back", scale.size) as file,
        Archiving([stage.machine, there], stage.control) as engine,
    ):
        files = Mix(stage, engine, scale.large)
        files.write()
        member = len(files.sizes) // 2
        shutil.copyfile(file.source, stage.far / files.FILES / files.names[member])
        files.archive(Pack.TAR)
        [made] = files.made
        uuid = made.members[member].uuid

        def copy() -> None:
            engine.copy((there, "file"), back, VerifyPolicy.SHA256, Route.RELAY)

        contenders = [
            Contender(COPY, copy, engine.connect),
            Contender(RECALL, lambda: engine.recall(made, uuid, there, back), engine.connect),
        ]
        try:
            yield Race("recall", file.megabytes, "MB", contenders, [], file.reset, file.check, baseline=COPY)
        finally:
            files.remove()


GROUPS: dict[str, Callable[[Stage, Scale], AbstractContextManager[Race]]] = {
    "large": partial(mix, "large", lambda scale: scale.large),
    "small": partial(mix, "small", lambda scale: scale.small),
    "mixed": partial(mix, "mixed", lambda scale: scale.mixed),
    "recall": recall,
}
