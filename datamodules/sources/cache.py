"""The cache of what was fetched: each entry is whole or absent, and is verified on every use.

Below `cache_dir()` each source has one folder, `<file name>-<hash of the description>/`, with the files in
`files/` and, written last, `manifest.json` with their sizes and SHA-256 sums. It is made under a private name
and renamed into place, so this holds with any number of processes and without file locks, which do nothing on
many cluster file systems.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

from datamodules.contract.errors import InputError, reason_of, say
from datamodules.contract.files import sha256_of, write_new
from datamodules.sources.archives import open_members
from datamodules.sources.kinds import Archive, sha256_mismatch

_STALE_SECONDS = 3600.0  # a private name of an unknown process is taken over when untouched for so long


def cache_dir() -> Path:
    """Folder for everything fetched: `$INSTRUCTREC_CACHE`, else `~/.cache/instructrec`; not created here.

    >>> from unittest.mock import patch
    >>> with patch.dict(os.environ, INSTRUCTREC_CACHE="somewhere"):
    ...     cache_dir().name
    'somewhere'
    """
    chosen = os.environ.get("INSTRUCTREC_CACHE")
    return (Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "instructrec").absolute()


def find_entry(source: Archive) -> Path | None:
    """What the cache holds of a source: its folder or file as `fetch` returns it, None if absent or damaged.

    Damage is also said on stderr.

    >>> from unittest.mock import patch
    >>> from datamodules.sources.kinds import UrlFile
    >>> with patch.dict(os.environ, INSTRUCTREC_CACHE="nowhere"):
    ...     find_entry(UrlFile("https://example.org/u.data", "0" * 64)) is None
    True
    """
    entry = _entry(source)
    if not entry.exists():
        return None
    if problem := _problem(entry, source):
        say(f"{problem}; fetching it again")
        return None
    return _result(entry, source)


def _entry(source: Archive) -> Path:
    """The folder of a source in the cache; its name hashes everything that decides the content."""
    key = hashlib.sha256(json.dumps([source.sha256, source.members, source.filename]).encode()).hexdigest()
    readable = re.sub(r"[^\w.-]", "_", source.filename, flags=re.ASCII)[:80]
    return cache_dir() / f"{readable}-{key[:16]}"


def _result(entry: Path, source: Archive) -> Path:
    return entry / "files" if source.members else entry / "files" / source.filename


def _problem(entry: Path, source: Archive) -> str | None:
    """Says what is wrong with a cache entry, None if every file has the recorded size and sum."""
    try:
        manifest = json.loads((entry / "manifest.json").read_text(encoding="utf-8"))
        recorded = {str(name): (int(of["bytes"]), str(of["sha256"])) for name, of in manifest["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{entry / 'manifest.json'} is unreadable ({reason_of(error)})"
    if not recorded or (not source.members and recorded.get(source.filename, (0, ""))[1] != source.sha256):
        return f"{entry / 'manifest.json'} does not describe {source}"
    for name, (size, digest) in recorded.items():
        path = entry / "files" / name
        try:
            actual_size = path.stat().st_size
            if actual_size != size:
                return f"{path} is damaged: expected {size} bytes, actual {actual_size}"
            if (actual := sha256_of(path)) != digest:
                return str(sha256_mismatch(str(path), digest, actual))
        except OSError as error:
            return f"{path} is unreadable ({reason_of(error)})"
    return None


def store_entry(archive: Path, source: Archive) -> Path:
    """Makes a whole entry from a verified file under a private name, then puts it in its place.

    Returns:
        As `find_entry`.

    Raises:
        InputError: the members cannot be unpacked, or the entry is damaged again and again.
        OSError: there is no room.

    >>> import tempfile
    >>> from unittest.mock import patch
    >>> from datamodules.sources.kinds import UrlFile
    >>> with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, INSTRUCTREC_CACHE=folder):
    ...     part = Path(folder, "part")
    ...     _ = part.write_text("196 242 3")
    ...     source = UrlFile("https://example.org/u.data", sha256_of(part))
    ...     store_entry(part, source) == find_entry(source)
    True
    """
    entry = _entry(source)
    for left in cache_dir().glob(f"{entry.name}.*.tmp"):
        if is_abandoned(left):
            shutil.rmtree(left, ignore_errors=True)
    staging = private_name(entry.name, ".tmp")
    try:
        (staging / "files").mkdir(parents=True)
        if source.members:
            with open_members(archive, source) as members:
                contents = {name: _copy(data, staging / "files" / name) for name, data in members}
        else:
            with archive.open("rb") as data:
                contents = {source.filename: _copy(data, staging / "files" / source.filename)}
        manifest = {
            "source": str(source),
            "sha256": source.sha256,
            "members": source.members,
            "files": contents,
        }
        write_new(staging / "manifest.json", json.dumps(manifest, indent=1))
        _publish(staging, entry, source)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return _result(entry, source)


def _copy(data: IO[bytes], path: Path) -> dict[str, int | str]:
    """Writes a stream to a new file, durably, and returns its line in the manifest."""
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = write_new(path, lambda out: shutil.copyfileobj(data, out, 1 << 20))
    return {"bytes": path.stat().st_size, "sha256": digest}


def _publish(staging: Path, entry: Path, source: Archive) -> None:
    """Renames a finished folder into its place, or leaves there what a faster process has put."""
    for _ in range(10):
        try:
            staging.rename(entry)
            return
        except OSError:
            if not entry.exists():
                raise
        if _problem(entry, source) is None:
            return
        grave = private_name(entry.name, ".tmp")
        with suppress(FileNotFoundError):  # another process was faster
            entry.rename(grave)
        shutil.rmtree(grave, ignore_errors=True)
    raise InputError(f"{entry} is damaged again and again; set INSTRUCTREC_CACHE to another folder")


def private_name(stem: str, suffix: str, owner: str = "") -> Path:
    """A fresh name in the cache that says which process of which machine it belongs to.

    Args:
        stem: beginning of the name.
        suffix: end of the name, with its dot.
        owner: instead of this machine; `free` for what any process may take.

    >>> private_name("u.data", ".part", owner="free").name.startswith("u.data.free.")
    True
    """
    return cache_dir() / f"{stem}.{owner or _machine()}.{os.getpid()}.{secrets.token_hex(4)}{suffix}"


def _machine() -> str:
    """Names where a process id has a meaning: the host and, on Linux, the container."""
    namespace = ""
    with suppress(OSError):
        namespace = os.readlink("/proc/self/ns/pid")
    return hashlib.sha256(f"{platform.node()} {namespace}".encode()).hexdigest()[:8]


def is_abandoned(path: Path) -> bool:
    """Whether no process works on a private name any more.

    >>> is_abandoned(private_name("u.data", ".part")), is_abandoned(private_name("u.data", ".part", "free"))
    (False, True)
    """
    machine, process = path.name.split(".")[-4:-2]
    if machine == "free":
        return True
    # Signal 0 only asks, but on Windows it ends the process; there, age decides.
    if machine == _machine() and os.name == "posix":
        try:
            os.kill(int(process), 0)
        except ProcessLookupError:
            return True
        except OSError:
            return False  # it lives and is another user's
        return False
    try:
        return time.time() - path.stat().st_mtime > _STALE_SECONDS
    except OSError:
        return False
