"""What clients may request: typed, checked, and the same over HTTP, AMQP and in the catalogue.

Unknown fields are refused where a request comes in (`validated`), but for those of OLD_EXTRAS; a stored request may
have some, of another version. Fields may be strings, as a form sends them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args
from uuid import UUID

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from datamanager.domain.fields import (
    NAME_SHOWN,
    TEXT_MAX,
    Bandwidth,
    Expiry,
    JsonObject,
    Lifetime,
    Moment,
    Name,
    OptionalName,
    Priority,
    Protocol,
    Rank,
    Size,
    Text,
    Verify,
    objection,
    read_json_object,
    read_positive,
    unknown_name,
)
from datamanager.domain.location import name_of_url, unpacked_name
from datamanager.errors import InvalidRequest

M = TypeVar("M", bound=BaseModel)

ITEMS_MAX = 10_000
"""Items of one batch; files of one tree, unless more are allowed."""
DIRECTORY_MAX = 100_000
"""Objects below the directory of one batch that copies or moves them; files of one tree at most."""
NAMED_MAX = 100
"""Wrong fields that are named: of 10,000 items every one may be wrong."""
OLD_EXTRAS: Mapping[str, str] = {
    "type": "the kind of data, which the original required; here `metadata` may hold it",
    "storage_technology": "FILESYSTEM or another store of the machine; a machine here has one",
    "gather_metrics": "whether a copy or move is timed; here every transfer is",
    "callback": "the queue that gets a message when a download ends; here there are events for it",
    "incidentId": "the incident that the callback is for",
}
"""What clients of the original send besides the README's fields, and what each meant: ignored on its endpoints."""


def with_default_machine(given: Any, read_item: Callable[[object], object] = lambda item: item) -> Any:
    """Give each item that names no machine that of its batch; for validators that see what was sent, right or wrong."""
    if not isinstance(given, Mapping) or not given.get("machine") or not isinstance(given.get("items"), list):
        return given

    def named(item: object) -> object:
        return {**item, "machine": item.get("machine") or given["machine"]} if isinstance(item, dict) else item

    return {**given, "items": [named(read_item(item)) for item in given["items"]]}


class Request(BaseModel):
    """What every request has in common."""

    model_config = ConfigDict(extra="ignore", frozen=True, str_max_length=TEXT_MAX)
    ignored: ClassVar[Mapping[str, str]] = {}
    """Fields that are no mistake although they are unknown, and why."""

    @field_validator("*", mode="after")
    @classmethod
    def _strings_can_be_stored(cls, value: Any) -> Any:
        if isinstance(value, str | dict) and (wrong := objection(value)) is not None:
            raise ValueError(wrong)
        return value


class NewObject(Request):
    """The description of an object that is to be in the catalogue."""

    ignored = OLD_EXTRAS

    filename: Name
    path: Text = ""
    machine: Name
    size: Size = None
    description: Text = ""
    originator: Text = ""
    group: Text = ""
    metadata: JsonObject = Field(default_factory=dict)

    @field_validator("filename")
    @classmethod
    def _filename_is_a_name(cls, value: str) -> str:
        if "/" in value or value in (".", ".."):
            raise ValueError("must be a file name without '/'; the directory belongs in path")
        return value


class RegisterRequest(NewObject):
    """Enter a file that exists into the catalogue."""

    verify: Annotated[Literal["none", "stat", "hash"], BeforeValidator(lambda v: v or "stat")] = "stat"
    """What to prove: nothing, that the file exists with the size given, or also its sha256."""
    lifetime: Lifetime = None
    """How long it is wanted from now on, such as 30d; rules of retention may ask for that."""
    expires_at: Expiry = None
    """Until when it is wanted, instead of `lifetime`."""

    @field_validator("expires_at")
    @classmethod
    def _one_end(cls, value: datetime | None, others: ValidationInfo) -> datetime | None:
        if value is not None and others.data.get("lifetime") is not None:
            raise ValueError("give either lifetime or expires_at")
        return value

    def ends(self, now: datetime) -> datetime | None:
        """Return when the object expires, None for never."""
        return now + self.lifetime if self.lifetime is not None else self.expires_at


class TransferTerms(Request):
    """What holds for every transfer: when it may begin and must have ended, and which goes first."""

    priority: Rank = Priority.NORMAL
    """All transfers of a higher priority are taken before any of a lower one."""
    deadline: Moment = None
    """What has not ended by then ends in ERROR `deadline_exceeded`."""
    not_before: Moment = None
    """It stays QUEUED until then."""


class CopyRequest(TransferTerms):
    """Copy an object to `dest` (directory and name in one) on `machine`, as a new object."""

    ignored = OLD_EXTRAS

    machine: Name
    dest: Name
    overwrite: bool = False
    """Replace an unregistered file at `dest`; a registered object is never replaced."""
    verify: Verify = None
    """Policy for this transfer; default the destination machine's."""
    bandwidth: Bandwidth = None


class MoveRequest(CopyRequest):
    """Move an object to `dest` on `machine`; it keeps its identifier."""


class GetExternalRequest(NewObject, TransferTerms):
    """Fetch a URL to a new object."""

    filename: Annotated[Name, Field(validate_default=True)] = ""
    """Default the last part of the URL's path."""
    url: Name
    protocol: Protocol = ""
    """Its URL's scheme must fit; absent or empty: that scheme."""
    options: JsonObject = Field(default_factory=dict, repr=False)
    overwrite: bool = False
    verify: Verify = None
    bandwidth: Bandwidth = None

    @field_validator("filename", mode="before")
    @classmethod
    def _has_a_name(cls, value: Any) -> Any:
        if value is None or value == "":
            raise ValueError("is required here, as the URL names no file")
        return value

    @model_validator(mode="before")
    @classmethod
    def _named_by_its_url(cls, given: Any) -> Any:
        # its place is claimed now, so the name can't wait for what the server suggests
        if not isinstance(given, Mapping) or given.get("filename") or not isinstance(given.get("url"), str):
            return given
        name = name_of_url(given["url"])
        if name is not None and _unpacks(given.get("options")):
            name = unpacked_name(name)
        return given if name is None else {**given, "filename": name}

    @property
    def extract(self) -> str | None:
        """How it is packed whose files are wanted: `tar`, `zip`, or None when it is wanted as it is."""
        wanted = self.options.get("extract")
        return wanted if isinstance(wanted, str) and wanted else None


def _unpacks(options: object) -> bool:
    try:
        parsed = read_json_object(options)
    except ValueError:  # said of the field itself
        return False
    return isinstance(parsed, dict) and bool(parsed.get("decompress"))


class DeleteRequest(TransferTerms):
    """Delete an object's file; its row stays."""

    ignored = OLD_EXTRAS

    force: bool = False
    """Delete the file even if it is not what the catalogue knows of it: size, or sha256 where that is known."""


class BatchTerms(TransferTerms):
    """What holds for every item of a batch."""

    overwrite: bool = False
    verify: Verify = None
    bandwidth: Bandwidth = None
    """Bytes per second of all its items together; default only the machines' limits."""
    machine: OptionalName = None
    """The machine of items that name none, and of all that lies below a directory."""


class AcceptedBatch(BatchTerms):
    """What is kept of a batch's request: its items are rows."""

    count: int
    """How many items it has."""


class BatchItem(Request):
    """One object of a batch, and where it is to go."""

    uuid: UUID
    machine: Name
    dest: Name


class Directory(Request):
    """A directory on a machine: every ACTIVE object below it is meant."""

    machine: Name
    path: Text = ""
    """Below the machine's base_dir, or absolute; empty means base_dir itself."""


def _items_or_directory(directory: Directory | None, others: ValidationInfo) -> Directory | None:
    if "items" in others.data and (directory is None) == (others.data["items"] is None):
        raise ValueError("either items or directory must be given")
    return directory


InsteadOfItems = Annotated[Directory | None, Field(validate_default=True), AfterValidator(_items_or_directory)]


class BatchRequest(BatchTerms):
    """Many objects in one task: `items` one by one, or all that lie below `directory` to `dest`."""

    items: Annotated[list[BatchItem], Field(min_length=1, max_length=ITEMS_MAX)] | None = None
    directory: InsteadOfItems = None
    dest: Annotated[Text | None, Field(validate_default=True)] = None
    """The directory on `machine` that becomes what `directory` is; empty means base_dir itself."""

    @model_validator(mode="before")
    @classmethod
    def _items_have_the_default_machine(cls, given: Any) -> Any:
        return with_default_machine(given)

    @field_validator("directory")
    @classmethod
    def _directory_has_machine(cls, value: Directory | None, others: ValidationInfo) -> Directory | None:
        if value is not None and others.data.get("machine") is None:
            raise ValueError("requires machine, the destination")
        return value

    @field_validator("dest")
    @classmethod
    def _directory_has_dest(cls, value: str | None, others: ValidationInfo) -> str | None:
        if value is None and others.data.get("directory") is not None:
            raise ValueError("is required: the destination directory")
        return value

    def accepted(self, count: int) -> AcceptedBatch:
        """Return what is kept of the request when it has `count` items."""
        return AcceptedBatch(count=count, **{name: getattr(self, name) for name in BatchTerms.model_fields})


class CopyManyRequest(BatchRequest):
    """Copy many objects, each to its `dest`, as new objects."""


class MoveManyRequest(BatchRequest):
    """Move many objects, each to its `dest`; they keep their identifiers."""


class TreeRequest(Request):
    """Enter every regular file below a directory into the catalogue."""

    machine: Name
    path: Text = ""
    """The directory, below the machine's base_dir or absolute; empty means base_dir itself."""
    description: Text = ""
    originator: Text = ""
    group: Text = ""
    metadata: JsonObject = Field(default_factory=dict)
    verify: Annotated[Literal["none", "stat"], BeforeValidator(lambda v: v or "stat")] = "stat"
    """Whether the sizes that the machine lists count as proved."""
    max_files: Annotated[
        int, Field(ge=1, le=DIRECTORY_MAX), BeforeValidator(lambda v: read_positive(v) or ITEMS_MAX)
    ] = ITEMS_MAX
    """With more files than this nothing is registered; 10,000 by default."""


def validated(fields: Mapping[str, Any], model: type[M]) -> M:
    """Make a typed request of fields as HTTP, AMQP or the Prefect UI brings them.

    Raises: InvalidRequest, which names each field that is wrong and what would be right, unknown ones too.
    """
    ignored = getattr(model, "ignored", {})
    given = {name: value for name, value in fields.items() if name not in ignored}
    try:
        return model.model_validate(given, extra="forbid")
    except RecursionError:
        raise InvalidRequest("the fields are nested too deeply") from None
    except ValidationError as exc:
        wrong: dict[str, str] = {}
        for fault in exc.errors(include_url=False, include_input=False, include_context=False)[:NAMED_MAX]:
            *where, last = [str(part)[:NAME_SHOWN] for part in fault["loc"]] or ["body"]
            what = fault["msg"].removeprefix("Value error, ")
            if fault["type"] == "extra_forbidden":
                what = unknown_name(last, _fields_at(model, where))
            wrong.setdefault(".".join([*where, last]) or "body", what)
        # not `from exc`: pydantic's text quotes what was sent, which may contain a secret
        raise InvalidRequest.of(wrong) from None


def _fields_at(model: type[BaseModel], where: list[str]) -> Collection[str]:
    """Return the fields of the model to which a fault's location leads."""
    for part in where:
        if part in model.model_fields:
            model = _model_in(model.model_fields[part].annotation) or model
    return model.model_fields


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _model_in(part)) is not None), None)
