"""Where data and weights come from: fetched once, verified on every use.

`fetch` turns a source (an address, a file of a package index, a Hugging Face snapshot, a local archive)
into a path. This is the place to import from; behind it stand `source_kinds` (descriptions and `InputError`),
`archives` (safe unpacking), `source_cache` (verified entries) and `downloads` (resuming). Together they are a
leaf: they import only each other, `requests` and, for snapshots, `huggingface_hub`.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from datamodules.contract.errors import InputError, reason_of, say
from datamodules.contract.files import sha256_of
from datamodules.sources.cache import cache_dir, find_entry, store_entry
from datamodules.sources.downloads import downloaded
from datamodules.sources.kinds import HubSnapshot, LocalFile, PackageArchive, Source, UrlFile, sha256_mismatch

__all__ = [
    "HubSnapshot",
    "InputError",
    "LocalFile",
    "PackageArchive",
    "Source",
    "UrlFile",
    "cache_dir",
    "fetch",
    "locate",
]


def fetch(source: Source) -> Path:
    """Makes a source available and returns where it is; what the cache holds is verified on each use.

    Returns:
        With `members`, and for a snapshot: a folder. It holds the members at their paths in the archive
        without the folders common to all (`a/b/x`, `a/b/c/y` become `x`, `c/y`). Else: the path of the file.

    Raises:
        InputError: the source cannot be had, is not what its sum says, or is not safe to unpack.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     ratings = Path(folder, "u.data")
    ...     _ = ratings.write_text("196 242 3 881250949")
    ...     fetch(LocalFile(ratings)) == ratings
    True
    """
    return _fetch(source, "")


def locate(name: str, source: Source | None, filenames: tuple[str, ...]) -> Path:
    """Returns the folder that holds a data set's files: the user's own, else the fetched source.

    The user's own are `$INSTRUCTREC_DATA/<name>/<filename>`; when all of them are there they are taken as
    they are, for no sum of them is known.

    Args:
        name: of the data set, the folder name under `$INSTRUCTREC_DATA`.
        source: what to fetch otherwise; None when the data cannot be fetched without a person.
        filenames: that must be there.

    Raises:
        InputError: the files are nowhere to be had; the message says what to put where.

    >>> import tempfile
    >>> from unittest.mock import patch
    >>> with tempfile.TemporaryDirectory() as root, patch.dict(os.environ, INSTRUCTREC_DATA=root):
    ...     Path(root, "mine").mkdir()
    ...     _ = Path(root, "mine", "u.data").write_text("196 242 3 881250949")
    ...     locate("mine", None, ("u.data",)).name
    'mine'
    """
    names = ", ".join(filenames)
    chosen = os.environ.get("INSTRUCTREC_DATA")
    root = Path(chosen).expanduser().absolute() if chosen else None
    if root is not None:
        if not root.is_dir():
            raise InputError(f"INSTRUCTREC_DATA={chosen} is not a folder")
        missing = [filename for filename in filenames if not (root / name / filename).is_file()]
        if not missing:
            return root / name
        if len(missing) < len(filenames):
            say(f"{root / name} lacks {', '.join(missing)}, so it is not used")
    place = str(root / name) if root else f"$INSTRUCTREC_DATA/{name} (any folder that you set the variable to)"
    if source is None:
        raise InputError(f"{name} cannot be downloaded automatically: put {names} in {place}")
    path = _fetch(source, f"put {names} in {place}, or ")
    folder = path if path.is_dir() else path.parent
    for filename in filenames:
        if not (folder / filename).is_file():
            found = ", ".join(sorted(item.name for item in folder.iterdir())[:8])
            raise InputError(f"{source} holds no {filename} for {name}; it holds {found}")
    return folder


def _fetch(source: Source, remedy: str) -> Path:
    """As `fetch`; `remedy` is what else the user can do about a missing file, as the start of a list."""
    try:
        if isinstance(source, HubSnapshot):
            return _snapshot(source, remedy)
        if isinstance(source, LocalFile):
            if not source.path.is_file():
                raise InputError(f"no file at {source.path}")
            actual = sha256_of(source.path)
            if source.sha256 and actual != source.sha256:
                raise sha256_mismatch(str(source.path), source.sha256, actual)
            if not source.members:
                return source.path
            source = replace(source, sha256=actual)
        if found := find_entry(source):
            return found
        cache_dir().mkdir(parents=True, exist_ok=True)
        if isinstance(source, LocalFile):
            return store_entry(source.path, source)
        placed = cache_dir() / source.filename
        if placed.is_file():
            if (actual := sha256_of(placed)) != source.sha256:
                raise sha256_mismatch(str(placed), source.sha256, actual)
            return store_entry(placed, source)
        with downloaded(source, remedy) as part:
            return store_entry(part, source)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise InputError(
            f"cannot keep {source} in {cache_dir()}: {reason_of(error)}{where}; "
            "make room there or set INSTRUCTREC_CACHE to another folder"
        ) from error


def _snapshot(source: HubSnapshot, remedy: str) -> Path:
    """The local snapshot if it is complete, else the hub's."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise InputError(f"cannot fetch {source}: the package huggingface_hub is not installed") from error

    def download(*, local: bool) -> tuple[Path, list[str]]:
        """The folder, and the patterns that nothing in it matches."""
        path = snapshot_download(
            source.repo,
            revision=source.revision,
            repo_type=source.repo_type,
            allow_patterns=list(source.files) or None,
            local_files_only=local,
        )
        folder = Path(path)
        there = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        return folder, [file for file in source.files if not any(fnmatchcase(name, file) for name in there)]

    if source.files:
        # The hub client raises errors of several libraries; here any of them means: ask the hub itself.
        with suppress(Exception):
            folder, absent = download(local=True)
            if not absent:
                return folder
    try:
        folder, absent = download(local=False)
    except Exception as error:
        raise InputError(
            f"cannot get {source}: {reason_of(error)}; {remedy}copy the hub's cache (HF_HOME) from where it "
            "has them, or run again where there is a network"
        ) from error
    if absent:
        raise InputError(f"{source} has no file {absent[0]}")
    return folder


def own_file(name: str, data_dir: Path | None, choices: tuple[str, ...], address: str) -> Path:
    """The first of the files that is there; out of a zip the one member is unpacked, once and safely.

    Raises:
        InputError: none is there; the message says what to put where.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "Toys.json").write_text("{}")
    >>> own_file("toys", folder, ("Toys.json.gz", "Toys.json"), "https://example.org").name
    'Toys.json'
    """
    found = optional_file(name, data_dir, choices)
    if found is None:
        folder = data_dir or _folder(name)
        place = folder or f"$INSTRUCTREC_DATA/{name} (any folder that you set the variable to)"
        wanted = " or ".join(choices)
        raise InputError(
            f"{name} cannot be downloaded automatically: get it from {address} and put {wanted} in {place}"
        )
    return found


def optional_file(name: str, data_dir: Path | None, choices: tuple[str, ...]) -> Path | None:
    """As `own_file`, but None where no file is there.

    >>> import tempfile
    >>> optional_file("toys", Path(tempfile.mkdtemp()), ("Toys.json",)) is None
    True
    """
    folder = data_dir or _folder(name)
    for choice in choices if folder else ():
        path = Path(folder or "", choice)
        if path.is_file():
            if path.suffix != ".zip":
                return path
            unpacked = fetch(LocalFile(path, members=("*",)))
            members = [member for member in sorted(unpacked.rglob("*")) if member.is_file()]
            if len(members) != 1:
                raise InputError(f"{path} must hold one file; it holds {len(members)}")
            return members[0]
    return None


def _folder(name: str) -> Path | None:
    chosen = os.environ.get("INSTRUCTREC_DATA")
    root = Path(chosen).expanduser().absolute() if chosen else None
    if root is not None and not root.is_dir():
        raise InputError(f"INSTRUCTREC_DATA={chosen} is not a folder")
    return root / name if root else None
