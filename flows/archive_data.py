"""The flows that put objects into archives: one, or many as bundles in one run.

A bundle is sent, verified and named before its objects are ARCHIVED, all at once; their sources are removed last.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal
from uuid import UUID

from prefect import flow

from datamanager.domain.fields import Priority
from datamanager.domain.states import TransferKind
from flows.runtime.lifecycle import working_on
from flows.steps.archive import each, make_bundle, plan_bundles
from flows.steps.batch import conclude


@flow(name="archive", persist_result=False)
async def archive_data(
    uuid: UUID | None = None,
    archive_to: str = "",
    verify: Literal["sizes", "checksums", "paranoid"] = "checksums",
    keep_source: bool = False,
    pack: Literal["tar", "none"] = "tar",
    compress: Literal["none", "zstd"] = "none",
    priority: Priority = Priority.NORMAL,
    deadline: str = "",
    transfer: UUID | None = None,
) -> str:
    """Archive object `uuid`.

    Args:
        uuid: The object; required.
        archive_to: The archive machine; empty means that of the group, else the default.
        verify: Verification before the source is removed: sizes, checksums or paranoid.
        keep_source: Do not remove the file.
        pack: tar, or none for a file of its own.
        compress: none or zstd.
        priority: Priority in the queue: high, normal or low.
        deadline: Time by which it must end: 2026-01-31T12:00:00Z, or a duration such as PT1H; empty means none.
        transfer: Leave it empty. It is set by the Data Manager.
    """
    return await _perform(TransferKind.ARCHIVE, locals())


@flow(name="archive many", persist_result=False)
async def archive_many(
    source_machine: str = "",
    directory: str = "",
    archive_to: str = "",
    verify: Literal["sizes", "checksums", "paranoid"] = "checksums",
    keep_source: bool = False,
    pack: Literal["tar", "none"] = "tar",
    compress: Literal["none", "zstd"] = "none",
    priority: Priority = Priority.NORMAL,
    deadline: str = "",
    transfer: UUID | None = None,
) -> str:
    """Archive every object below `directory` of `source_machine`, several per bundle.

    Args:
        source_machine: The machine of the objects; required.
        directory: The directory of the objects, below the machine's base directory; empty means all.
        archive_to: The archive machine; empty means that of the group, else the default.
        verify: Verification before the sources are removed: sizes, checksums or paranoid.
        keep_source: Do not remove the files.
        pack: tar, or none for one file per object.
        compress: none or zstd.
        priority: Priority in the queue: high, normal or low.
        deadline: Time by which it must end: 2026-01-31T12:00:00Z, or a duration such as PT1H; empty means none.
        transfer: Leave it empty. It is set by the Data Manager.
    """
    return await _perform(TransferKind.ARCHIVE_MANY, locals())


async def _perform(kind: TransferKind, form: Mapping[str, Any]) -> str:
    async with working_on(kind, form):
        await each(await plan_bundles(), make_bundle)
        return await conclude()
