"""Arrays that are slow to make, kept on disk: memory-mapped, keyed by all that decides them, verified on every use.

An entry is one file whose name hashes its key. It is written under a private name in the same folder and renamed into
place, so that any number of processes share it without file locks, which do nothing on many cluster file systems. Its
first bytes are the sum of all others: what is torn, flipped or of another key is made again and never used. An entry is
never changed, and old ones are never read again: the folder may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.contract.errors import reason_of, say
from datamodules.contract.files import write_atomic
from datamodules.sources.cache import cache_dir, is_abandoned, private_name

Arrays = dict[str, NDArray[Any]]

_MAGIC = b"IRarray1"
_ALIGNED = 64  # arrays begin at multiples of so many bytes
_HEAD = len(_MAGIC) + hashlib.sha256().digest_size + 8  # then comes the description, then the arrays


class DamagedError(Exception):
    """A cache file is not what was written."""


@dataclass(frozen=True)
class ArrayFile:
    """Read-only arrays, and the file they are mapped from.

    Pickling keeps the file's name alone, so that a worker process maps the same memory.

    Attributes:
        path: the file; None where the arrays could not be kept.
        key: everything that decides the arrays.
        arrays: the arrays by name.
    """

    path: Path | None
    key: dict[str, str]
    arrays: Arrays = field(repr=False)

    def __reduce__(self) -> tuple[Any, ...]:
        """Opens the file again where it is unpickled; only arrays without a file are copied."""
        if self.path is not None:
            return open_arrays, (self.path, self.key)
        return ArrayFile, (None, self.key, self.arrays)


def cached_arrays(kind: str, key: Mapping[str, str], make: Callable[[], Arrays]) -> ArrayFile:
    """Arrays from the cache, or newly made and then kept there.

    Returns:
        The arrays, mapped from the file, or held in memory where it cannot be written, which is said on stderr.

    Example:
        >>> import tempfile
        >>> from unittest.mock import patch
        >>> with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, INSTRUCTREC_CACHE=folder):
        ...     made = cached_arrays("squares", {"up to": "4"}, lambda: {"square": np.arange(4) ** 2})
        ...     again = cached_arrays("squares", {"up to": "4"}, dict)  # not made a second time
        ...     again.arrays["square"].tolist(), again.path == made.path
        ([0, 1, 4, 9], True)
    """
    key = dict(key)
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    path = cache_dir() / kind / f"{digest[:32]}.arrays"
    try:
        return open_arrays(path, key)
    except FileNotFoundError:
        pass
    except (OSError, DamagedError) as error:
        say(f"{path} cannot be used ({reason_of(error)}); making it again")
    arrays = make()
    try:
        _write(path, key, arrays)
        return open_arrays(path, key)
    except (OSError, DamagedError) as error:
        say(f"{path} cannot be kept ({reason_of(error)}); going on without it")
        return ArrayFile(None, key, arrays)


def open_arrays(path: Path, key: dict[str, str]) -> ArrayFile:
    """Maps an entry and compares its sum and its key.

    Raises:
        OSError: it cannot be read.
        DamagedError: it is not what was written, or of another key.
    """
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size < _HEAD:
            raise DamagedError("it is cut short")
        whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    body = memoryview(whole)[len(_MAGIC) + 32 :]
    if whole[: len(_MAGIC)] != _MAGIC:
        raise DamagedError("it is no such file")
    expected, actual = whole[len(_MAGIC) : len(_MAGIC) + 32], hashlib.sha256(body).digest()
    if expected != actual:
        raise DamagedError(f"expected sha256 {expected.hex()[:12]}, actual {actual.hex()[:12]}")
    size = int.from_bytes(body[:8], "little")
    description = json.loads(bytes(body[8 : 8 + size]))
    if description["key"] != key:
        raise DamagedError("it belongs to another key")
    begin = _aligned(_HEAD + size)
    arrays = {
        name: np.frombuffer(whole, of["dtype"], int(np.prod(of["shape"])), begin + of["offset"]).reshape(of["shape"])
        for name, of in description["arrays"].items()
    }
    return ArrayFile(path, key, arrays)


def _write(path: Path, key: dict[str, str], arrays: Arrays) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f"{path.name}.*.tmp"):
        if is_abandoned(left):
            left.unlink(missing_ok=True)
    described, offset, pieces = {}, 0, []
    for name, array in arrays.items():
        raw = np.ascontiguousarray(array)
        described[name] = {"dtype": raw.dtype.str, "shape": list(raw.shape), "offset": offset}
        pieces += [raw.tobytes(), bytes(_aligned(raw.nbytes) - raw.nbytes)]
        offset += _aligned(raw.nbytes)
    text = json.dumps({"key": key, "arrays": described}).encode()
    pieces = [len(text).to_bytes(8, "little"), text, bytes(_aligned(_HEAD + len(text)) - _HEAD - len(text)), *pieces]
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    draft = path.parent / private_name(path.name, ".tmp").name
    write_atomic(path, lambda file: [file.write(piece) for piece in (_MAGIC, digest.digest(), *pieces)], draft=draft)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED
