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
from functools import partial
from hashlib import sha256
from typing import TypeVar

from datamanager.errors import NotSupported, PathExists, PathMissing, RemoteFailure, TransportError
from datamanager.transports.bulk_port import InOneTurn, Results, Sync
from datamanager.transports.local.beneath import Beneath, Entry, Walks
from datamanager.transports.local.files import both_names, file_stat, os_errors, real_path, rename, set_attributes
from datamanager.transports.values import FileStat, KeptAttributes, NewFile, SmallFile, error_of, require_file, shown

A = TypeVar("A")
R = TypeVar("R")

_DIRECTORIES_AT_ONCE = 100
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC


class LocalBulk:
    """Work on many small files of this host. Those of one directory, one after the other, need one walk to it."""

    def __init__(self, beneath: Beneath) -> None:
        self.in_one_turn: InOneTurn | None = None
        self._beneath = beneath

    def lstat(self, paths: Sequence[str]) -> Results[FileStat | TransportError]:
        """Yield each path's lstat."""
        return self._each_name(_lstat, paths)

    def real_path(self, paths: Sequence[str]) -> Results[str | TransportError]:
        """Yield each path with every link resolved."""
        return _each(real_path, paths)

    def make_dir(self, paths: Sequence[str]) -> Results[TransportError | None]:
        """Make each directory."""
        return self._each_entry(_make_dir, paths)

    def read(
        self,
        paths: Sequence[str],
        most: int,
        likely: int | None = None,  # noqa: ARG002
    ) -> Results[SmallFile | TransportError]:
        """Yield whole regular files; a link is not followed."""
        return self._each_name(partial(_read, most), paths)

    def write(self, files: Iterable[NewFile]) -> Results[KeptAttributes | TransportError]:
        """Create each file, write it, set its mode and mtime, close it."""
        with self._beneath.walks() as walks:
            yield from _each(lambda file: _write(walks, file), files)

    def unpack(self, files: Iterable[NewFile], directory: str) -> None:  # noqa: ARG002 - nothing is done
        """Refuse: a program would do nothing here that `write` does not."""
        raise NotSupported("this host writes files as quickly as it unpacks them")

    def digest(self, paths: Sequence[str], most: int) -> Results[str | TransportError]:
        """Yield each file's sha256, computed here."""
        return self._each_name(partial(_digest, most), paths)

    def rename(self, names: Sequence[tuple[str, str]], *, overwrite: bool) -> Results[TransportError | None]:
        """Give each file its new name."""
        with self._beneath.walks() as sources, self._beneath.walks() as destinations:

            def work(both: tuple[str, str]) -> None:
                rename(*both_names(sources, destinations, *both), overwrite=overwrite)

            yield from _each(work, names)

    def remove(self, paths: Sequence[str]) -> Results[TransportError | None]:
        """Remove each file."""
        return self._each_entry(Entry.unlink, paths)

    def syncing(self) -> AbstractContextManager[Sync]:
        """Put directories' file systems on stable storage, by coreutils' `sync`: Python has no syncfs."""
        return contextlib.nullcontext(self._sync)

    def _sync(self, directories: Sequence[str]) -> None:
        program, nothing = shutil.which("sync"), subprocess.DEVNULL
        for start in range(0, len(directories), _DIRECTORIES_AT_ONCE):
            with contextlib.ExitStack() as stack:
                handles = [self._directory(path, stack) for path in directories[start : start + _DIRECTORIES_AT_ONCE]]
                words = [program or "", "-f", "--", *[f"/proc/self/fd/{handle}" for handle in handles]]
                if (
                    not program
                    or subprocess.run(
                        words, stdin=nothing, stdout=nothing, stderr=nothing, check=False, pass_fds=handles
                    ).returncode
                ):
                    raise NotSupported("this host has no sync that puts a file system on stable storage")

    def _directory(self, path: str, stack: contextlib.ExitStack) -> int:
        try:
            with os_errors(path), self._beneath.entry(path) as entry:
                handle = entry.open_directory()
        except PathMissing as exc:
            raise NotSupported(f"there is nothing to put on stable storage: {exc.detail}") from exc
        stack.callback(os.close, handle)
        return handle

    def _each_entry(self, work: Callable[[Entry], R], paths: Sequence[str]) -> Results[R | TransportError]:
        """Do the work on one entry after the other."""
        return self._each_name(lambda *where: work(Entry(*where)), paths)

    def _each_name(self, work: Callable[[int, str, str], R], paths: Sequence[str]) -> Results[R | TransportError]:
        """Do the work on one name after the other: it is given the open directory, the name, and the path."""
        with self._beneath.walks() as walks:
            for index, path in enumerate(paths):
                result: R | TransportError
                try:
                    result = work(*walks.name(path), path)
                except OSError as exc:
                    result = error_of(exc.errno or 0, path)
                except TransportError as exc:
                    result = exc.with_traceback(None)
                yield index, result


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


def _make_dir(entry: Entry) -> None:
    try:
        entry.mkdir()
    except FileExistsError:
        raise PathExists(f"{shown(entry.path)}: a file exists there") from None


def _lstat(directory: int, name: str, _: str) -> FileStat:
    return file_stat(os.stat(name, dir_fd=directory, follow_symlinks=False))


def _digest(most: int, directory: int, name: str, path: str) -> str:
    return sha256(_read(most, directory, name, path).data).hexdigest()


def _read(most: int, directory: int, name: str, path: str) -> SmallFile:
    handle = os.open(name, _READ, dir_fd=directory)
    try:
        stat = file_stat(os.fstat(handle))
        require_file(stat, path)
        data = b""
        while len(data) <= most and (block := os.read(handle, min(stat.size, most) + 1 - len(data))):
            data += block
            if len(data) >= stat.size:  # what comes behind shows at the next look at the file
                break
    finally:
        os.close(handle)
    if max(stat.size, len(data)) > most:
        raise RemoteFailure(f"{shown(path)}: is larger than {most} bytes")
    return SmallFile(stat, data)


def _write(walks: Walks, file: NewFile) -> KeptAttributes:
    with os_errors(file.path):
        entry = walks.entry(file.path)
        handle = entry.open(os.O_WRONLY | os.O_CREAT | os.O_EXCL)
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
                entry.unlink()
            raise
