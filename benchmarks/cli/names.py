"""Names for configs and suites: `lora` and `peft/loha` say as much as their paths."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from benchmarks.paths import CONFIGS, SUITES, located
from benchmarks.plain_yaml import nearest_hint
from datamodules.contract.errors import InputError


def config_named(name: str) -> Path:
    """Returns the config that a name or a path means; names are looked up in the folder of every axis.

    A `configs/` in the current folder is searched beside ours; of two files with the same text it is the one there.

    Example:
        >>> [config_named(name).relative_to(CONFIGS).as_posix() for name in ("lora", "peft/loha", "data/ml_100k")]
        ['model/lora.yaml', 'model/peft/loha.yaml', 'data/ml_100k.yaml']
    """
    folders = (CONFIGS, Path("configs")) if Path("configs").resolve() != CONFIGS else (CONFIGS,)
    return _named(name, folders, "config")


def suite_named(name: str) -> Path:
    """Returns the suite that a name or a path means.

    Example:
        >>> suite_named("tallrec_movie").relative_to(SUITES).as_posix()
        'reproduce/tallrec_movie.yaml'
    """
    return _named(name, (SUITES,), "suite")


def names_of(folder: Path) -> Iterator[tuple[Path, PurePosixPath]]:
    """Yields the YAML files below a folder with their names: the path without the suffix."""
    for path in sorted(folder.rglob("*.yaml")):
        yield path, PurePosixPath(path.relative_to(folder).with_suffix("").as_posix())


def _named(name: str, folders: Sequence[Path], what: str) -> Path:
    given = Path(name).expanduser()
    if given.is_file():
        return given
    if given.suffix in (".yaml", ".yml"):
        ours = located(given)
        return ours if ours.is_file() or not given.parent.is_dir() else given
    parts = PurePosixPath(name).parts
    known = [(path, short) for folder in folders for path, short in names_of(folder)]
    fitting = [(path, short) for path, short in known if short.parts[-len(parts) :] == parts]
    # `prefix` is model/prefix rather than model/peft/prefix: the name that says all.
    depth = min((len(short.parts) for _, short in fitting), default=0)
    nearest = [(path, short) for path, short in fitting if len(short.parts) == depth]
    # An installed instructrec that runs in a checkout of the project sees every config twice: that folder's is taken.
    nearest = list({(short, path.read_bytes()): (path, short) for path, short in nearest}.values())
    if len(nearest) > 1:
        choices = " or ".join(str(short) if len({s for _, s in nearest}) > 1 else str(path) for path, short in nearest)
        raise InputError(f"{what} {name!r} is ambiguous: write {choices}")
    if not nearest:
        words = {word for _, short in known for word in (short.name, "/".join(short.parts[1:]), str(short)) if word}
        raise InputError(f"no {what} {name!r}{nearest_hint(name, sorted(words))}; instructrec ls lists them")
    return nearest[0][0]
