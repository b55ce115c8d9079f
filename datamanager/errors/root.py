"""The root of all errors."""

from __future__ import annotations

from datetime import timedelta
from typing import ClassVar


class DataManagerError(Exception):
    """The root: everything the Data Manager raises on purpose. Its classes say `code` and `retryable` in their head.

    `retryable` is a fact of the class; who raises may know better of this one. `again`: after which wait it may work.
    Neither is changed afterwards.
    """

    code: ClassVar[str] = "internal"
    retryable: bool = False

    def __init_subclass__(cls, *, code: str, retryable: bool | None = None) -> None:
        cls.code = code
        if retryable is not None:
            cls.retryable = retryable

    def __init__(self, detail: str, *, retryable: bool | None = None, again: timedelta | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.again = again
        if retryable is not None:
            self.retryable = retryable
