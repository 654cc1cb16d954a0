"""Safe unpacking: zips and tars give up only the plain files asked for, at paths inside a folder."""

from __future__ import annotations

import difflib
import posixpath
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import IO

from datamodules.contract.errors import InputError, reason_of
from datamodules.sources.kinds import Archive


@contextmanager
def open_members(archive: Path, source: Archive) -> Iterator[Iterator[tuple[str, IO[bytes]]]]:
    """Opens a zip or tar and iterates (path to unpack to, stream) of the members that the patterns choose.

    The paths lack the folders common to all: `a/b/x`, `a/b/c/y` become `x`, `c/y`.

    Raises:
        InputError: it is no archive or a broken one, lacks a wanted member, or is not safe to unpack.

    >>> import tempfile
    >>> from datamodules.sources.kinds import LocalFile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "toy.zip")
    ...     with zipfile.ZipFile(path, "w") as bag:
    ...         bag.writestr("toy/u.data", "196 242 3")
    ...     with open_members(path, LocalFile(path, members=("toy/*",))) as members:
    ...         [(name, data.read()) for name, data in members]
    [('u.data', b'196 242 3')]
    """
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as bag:
                infos = [info for info in bag.infolist() if not info.is_dir()]
                kinds = [stat.S_IFMT(info.external_attr >> 16) for info in infos]
                rows = [
                    (info.filename, info.file_size, kind in (0, stat.S_IFREG))
                    for info, kind in zip(infos, kinds, strict=True)
                ]
                names = _safe_names(rows, source)
                yield ((names[i.filename], bag.open(i)) for i in infos if i.filename in names)
        elif tarfile.is_tarfile(archive):
            with tarfile.open(archive) as tar:
                parts = [part for part in tar.getmembers() if not part.isdir()]
                names = _safe_names([(part.name, part.size, part.isreg()) for part in parts], source)
                yield ((names[p.name], s) for p in parts if p.name in names and (s := tar.extractfile(p)))
        else:
            raise InputError(f"{source} is neither a zip nor a tar, so it has no members")
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, RuntimeError) as error:
        raise InputError(f"{source} cannot be unpacked: {reason_of(error)}") from error


def _safe_names(rows: list[tuple[str, int, bool]], source: Archive) -> dict[str, str]:
    """Chooses members by the patterns and maps each name to its path without the folders common to all.

    Args:
        rows: name, bytes, and whether it is a plain file (not a link or device), for each member.
        source: with the patterns and the size limit.
    """
    chosen: dict[PurePosixPath, str] = {}
    for name, size, plain in rows:
        path = PurePosixPath(name)  # drops the leading "./" that many tars have
        refused = f"{source} is refused: its member {name!r}"
        # An escape makes the whole archive suspect, whether or not the member is wanted.
        if path.is_absolute() or ".." in path.parts or "\\" in name or re.match("[A-Za-z]:", name):
            raise InputError(f"{refused} would be written outside its folder")
        if not any(fnmatchcase(str(path), pattern) for pattern in source.members):
            continue
        if not plain:
            raise InputError(f"{refused} is a link or a device")
        if size > source.max_member_bytes:
            raise InputError(f"{refused} has {size} bytes, the limit is {source.max_member_bytes}")
        if path in chosen:
            raise InputError(f"{refused} stands twice")
        chosen[path] = name
    for pattern in source.members:
        if not any(fnmatchcase(str(path), pattern) for path in chosen):
            near = difflib.get_close_matches(pattern, [name for name, _, _ in rows], n=1, cutoff=0.0)
            hint = f"; the nearest is {near[0]}" if near else ""
            raise InputError(f"{source} has no member {pattern}{hint}")
    common = posixpath.commonpath([str(path.parent) for path in chosen])
    return {name: path.relative_to(common).as_posix() for path, name in chosen.items()}
