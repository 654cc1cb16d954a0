"""Files of data sets that nobody may pass on: found where the user has put them, under any of their published names."""

from __future__ import annotations

import os
from pathlib import Path

from datamodules.sources import InputError, LocalFile, fetch


def own_file(name: str, data_dir: Path | None, choices: tuple[str, ...], address: str) -> Path:
    """The first of the files that is there; out of a zip the one member is unpacked, once and safely.

    Args:
        name: of the data set, the folder name under `$INSTRUCTREC_DATA`.
        data_dir: the folder, where the user names it.
        choices: file names that are the same data, best first.
        address: where people get it.

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
