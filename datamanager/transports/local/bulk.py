"""Many small files on this host: the port's `Bulk` by plain system calls, one file after the other.

There is no round trip to save here.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from hashlib import sha256
from typing import TypeVar

from datamanager.errors import NotSupported, PathExists, RemoteFailure, TransportError
from datamanager.transports.bulk_port import Results, Sync
from datamanager.transports.local.files import file_stat, lstat, os_errors, real_path, remove, rename, set_attributes
from datamanager.transports.values import FileStat, KeptAttributes, NewFile, SmallFile, require_file, shown

A = TypeVar("A")
R = TypeVar("R")

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECTORIES_AT_ONCE = 100


class LocalBulk:
    """Work on many small files of this host."""

    def lstat(self, paths: Sequence[str]) -> Results[FileStat | TransportError]:
        """Yield each path's lstat."""
        return _each(lstat, paths)

    def real_path(self, paths: Sequence[str]) -> Results[str | TransportError]:
        """Yield each path with every link resolved."""
        return _each(real_path, paths)

    def make_dir(self, paths: Sequence[str]) -> Results[TransportError | None]:
        """Make each directory."""
        return _each(_make_dir, paths)

    def read(
        self,
        paths: Sequence[str],
        most: int,
        likely: int | None = None,  # noqa: ARG002
    ) -> Results[SmallFile | TransportError]:
        """Yield whole regular files; a link is not followed."""
        return _each(lambda path: _read(path, most), paths)

    def write(self, files: Iterable[NewFile]) -> Results[KeptAttributes | TransportError]:
        """Create each file, write it, set its mode and mtime, close it."""
        return _each(_write, files)

    def unpack(self, *_: object, **__: object) -> None:
        """Refuse: a program would do nothing here that `write` does not."""
        raise NotSupported("this host writes files as quickly as it unpacks them")

    def digest(self, paths: Sequence[str], most: int) -> Results[str | TransportError]:
        """Yield each file's sha256, computed here."""
        return _each(lambda path: sha256(_read(path, most).data).hexdigest(), paths)

    def rename(self, names: Sequence[tuple[str, str]], *, overwrite: bool) -> Results[TransportError | None]:
        """Give each file its new name."""
        return _each(lambda both: rename(*both, overwrite=overwrite), names)

    def remove(self, paths: Sequence[str]) -> Results[TransportError | None]:
        """Remove each file."""
        return _each(remove, paths)

    def syncing(self) -> AbstractContextManager[Sync]:
        """Put directories' file systems on stable storage, by coreutils' `sync`: Python has no syncfs."""
        return contextlib.nullcontext(_sync)


def _sync(directories: Sequence[str]) -> None:
    program, nothing = shutil.which("sync"), subprocess.DEVNULL
    for start in range(0, len(directories), _DIRECTORIES_AT_ONCE):
        words = [program or "", "-f", "--", *directories[start : start + _DIRECTORIES_AT_ONCE]]
        if not program or subprocess.run(words, stdin=nothing, stdout=nothing, stderr=nothing, check=False).returncode:
            raise NotSupported("this host has no sync that puts a file system on stable storage")


def _each(work: Callable[[A], R], things: Iterable[A]) -> Results[R | TransportError]:
    """Do the work on one thing after the other; what `things` itself raises passes."""
    for index, thing in enumerate(things):
        result: R | TransportError
        try:
            result = work(thing)
        except TransportError as exc:
            if exc.__cause__ is not None:
                exc.__cause__.with_traceback(None)  # whose frames would keep the file's bytes
            result = exc.with_traceback(None)
        yield index, result


def _make_dir(path: str) -> None:
    try:
        with os_errors(path):
            os.mkdir(path)
    except PathExists:
        if not os.path.isdir(path):
            raise PathExists(f"{shown(path)}: a file exists there") from None


def _read(path: str, most: int) -> SmallFile:
    with os_errors(path):
        handle = os.open(path, _READ)
        try:
            stat = file_stat(os.fstat(handle))
            require_file(stat, path)
            data = bytearray()
            while len(data) <= most and (block := os.read(handle, most + 1 - len(data))):
                data += block
        finally:
            os.close(handle)
    if max(stat.size, len(data)) > most:
        raise RemoteFailure(f"{shown(path)}: is larger than {most} bytes")
    return SmallFile(stat, bytes(data))


def _write(file: NewFile) -> KeptAttributes:
    with os_errors(file.path):
        handle = os.open(file.path, _NEW, 0o600)
        try:
            try:
                rest = memoryview(file.data).cast("B")
                while rest:
                    rest = rest[os.write(handle, rest) :]
                return set_attributes(handle, mode=file.mode, mtime=file.mtime)
            finally:
                os.close(handle)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(file.path)
            raise
