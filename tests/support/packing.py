"""Archives as others make them: good ones, and such as nobody should believe."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Mapping

MTIME = 1_600_000_000


def tar_of(files: Mapping[str, bytes], form: int = tarfile.PAX_FORMAT, *special: tarfile.TarInfo) -> bytes:
    """Return a tar file with a directory, the files, and special members behind them."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=form) as tar:
        tar.addfile(directory("some"))
        for name, data in files.items():
            tar.addfile(regular(name, len(data)), io.BytesIO(data))
        for info in special:
            tar.addfile(info)
    return made.getvalue()


def zip_of(files: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """Return a zip file with a directory and the files."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", method) as archive:
        archive.writestr(zipfile.ZipInfo("some/", (2020, 9, 13, 12, 26, 40)), b"")
        for name, data in files.items():
            info = zipfile.ZipInfo(name, (2020, 9, 13, 12, 26, 40))
            info.compress_type = method
            archive.writestr(info, data)
    return made.getvalue()


def regular(name: str, size: int = 0) -> tarfile.TarInfo:
    """Describe a regular file."""
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = size, MTIME, 0o4777
    return info


def directory(name: str) -> tarfile.TarInfo:
    """Describe a directory."""
    info = tarfile.TarInfo(name)
    info.type = tarfile.DIRTYPE
    return info


def link(name: str, to: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    """Describe a link, or (by its type) something stranger."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, to
    return info
