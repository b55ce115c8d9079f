"""Find errors by their codes."""

from __future__ import annotations

from collections.abc import Iterator

from datamanager.errors.request_errors import UnknownMachine
from datamanager.errors.root import DataManagerError
from datamanager.errors.service_errors import InternalError
from datamanager.errors.transfer_errors import TransferError


def every_error(root: type[DataManagerError] = DataManagerError) -> Iterator[type[DataManagerError]]:
    """Yield `root` and all classes below it, parents first."""
    yield root
    for child in root.__subclasses__():
        yield from every_error(child)


def by_code(code: str, detail: str, *, retryable: bool | None = None) -> DataManagerError:
    """Return an error of the class that owns `code` (for faults read back from the catalogue, or from an answer).

    `size_mismatch` has two owners; the transfer's is meant here. An unknown code becomes InternalError.
    """
    classes = [*every_error(TransferError), *every_error()]
    leaves_first = sorted(classes, key=lambda cls: bool(cls.__subclasses__()))
    cls = next((cls for cls in leaves_first if cls.code == code), InternalError)
    if cls is UnknownMachine:  # made of a machine's name; here its sentence is already there
        error = UnknownMachine("")
        DataManagerError.__init__(error, detail, retryable=retryable)
        return error
    return cls(detail, retryable=retryable)
