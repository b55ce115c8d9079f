"""What clients may request of archives: objects into bundles (archive), and back out of them (activate).

Old clients send nothing, or form fields: an empty field means its default.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BeforeValidator, Field, model_validator

from datamanager.domain.fields import Bandwidth, OptionalName, empty_is
from datamanager.domain.requests import (
    ITEMS_MAX,
    OLD_EXTRAS,
    InsteadOfItems,
    Request,
    TransferTerms,
    with_default_machine,
)

_ITEMS = Field(min_length=1, max_length=ITEMS_MAX)


def _with_uuid(item: object) -> object:
    return {"uuid": item} if isinstance(item, str | UUID) else item


class ArchiveTerms(TransferTerms):
    """How objects become bundles."""

    archive_to: OptionalName = None
    """The archive machine; default the group's, else the one of the settings, else the only one there is."""
    verify: Annotated[Literal["sizes", "checksums", "paranoid"], empty_is("checksums")] = "checksums"
    """What is proved before an object counts as archived: sizes only; the stored bundle's sha256; that of every member
    too."""
    keep_source: Annotated[bool, empty_is(False)] = False
    """Leave the files where they are."""
    pack: Annotated[Literal["tar", "none"], empty_is("tar")] = "tar"
    """`none`: every object is a file of its own in the archive."""
    compress: Annotated[Literal["none", "zstd"], empty_is("none")] = "none"
    bandwidth: Bandwidth = None


class ArchiveRequest(ArchiveTerms):
    """Put an object into an archive; its place becomes free."""

    ignored = OLD_EXTRAS


class AcceptedArchive(ArchiveTerms):
    """What is kept of a request to archive many: its items are rows."""

    count: int
    """How many items it has."""


class ArchiveItem(Request):
    """One object that is to be archived."""

    uuid: UUID


class ArchiveManyRequest(ArchiveTerms):
    """Archive many objects in one task: `items` one by one, or all that lie below `directory`."""

    items: Annotated[list[Annotated[ArchiveItem, BeforeValidator(_with_uuid)]], _ITEMS] | None = None
    """Objects, or just their identifiers."""
    directory: InsteadOfItems = None

    def accepted(self, count: int) -> AcceptedArchive:
        """Return what is kept of the request when it has `count` items."""
        return AcceptedArchive(count=count, **{name: getattr(self, name) for name in ArchiveTerms.model_fields})


class ActivateTerms(TransferTerms):
    """How objects come back out of their bundles."""

    machine: OptionalName = None
    """The machine that they are to go to; default each one's own."""
    overwrite: Annotated[bool, empty_is(False)] = False
    """Replace an unregistered file at the destination; a registered object is never replaced."""
    bandwidth: Bandwidth = None


class ActivateRequest(ActivateTerms):
    """Bring an archived object's file back, to where it was or to `dest` (directory and name in one) on `machine`."""

    ignored = OLD_EXTRAS

    dest: OptionalName = None
    """Default the path that it had."""


class AcceptedActivate(ActivateTerms):
    """What is kept of a request to activate many: its items are rows."""

    count: int
    """How many items it has."""


class ActivateItem(Request):
    """One object that is to come back, and where it is to go if not to where it was."""

    uuid: UUID
    machine: OptionalName = None
    dest: OptionalName = None


class ActivateManyRequest(ActivateTerms):
    """Bring many archived objects back in one task: `items`, or all whose place is below `directory`."""

    items: Annotated[list[Annotated[ActivateItem, BeforeValidator(_with_uuid)]], _ITEMS] | None = None
    """Objects, or just their identifiers."""
    directory: InsteadOfItems = None

    @model_validator(mode="before")
    @classmethod
    def _items_have_the_default_machine(cls, given: Any) -> Any:
        return with_default_machine(given, _with_uuid)

    def accepted(self, count: int) -> AcceptedActivate:
        """Return what is kept of the request when it has `count` items."""
        return AcceptedActivate(count=count, **{name: getattr(self, name) for name in ActivateTerms.model_fields})
