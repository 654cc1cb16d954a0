"""What a config may name, so that a config is data and never code.

Three fences, each sufficient against most attacks: jsonargparse may import from a short list of modules only; after the
parse, everything named must be a class of a kind that the command line builds; and everything else must be plain data,
so that no function can stand where a library would call it. The parse itself imports but never calls what is named.
"""

from __future__ import annotations

import datetime
import enum
import importlib
import inspect
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace, get_loader, set_loader, set_parsing_settings
from jsonargparse.typing import Path as ConfigPath
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins import LayerSync, Precision
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.profilers import Profiler
from lightning.pytorch.strategies import Strategy
from peft import PeftConfig
from torch.optim import Optimizer

from benchmarks.option_groups import spell_out
from benchmarks.plain_yaml import check_plain
from datamodules.contract.compat.jsonargparse import accept_nested_null, restrict_subclasses
from datamodules.contract.errors import InputError

FLAG = "--allow-import"
HELP = (
    f"{FLAG} PACKAGE: configs may also name classes of this package (a plug-in); repeatable; never read from a config"
)


def take_plugins(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Splits a command line into what the parser reads and the packages that may be imported.

    Example:
        >>> take_plugins(["fit", "--allow-import", "my_methods", "--model.r=4", "--allow-import=more"])
        (['fit', '--model.r=4'], ['my_methods', 'more'])
    """
    rest: list[str] = []
    plugins: list[str] = []
    words = iter(arguments)
    for word in words:
        if word != FLAG and not word.startswith(f"{FLAG}="):
            rest.append(word)
            continue
        name = next(words, "") if word == FLAG else word.partition("=")[2]
        if not name or not all(part.isidentifier() for part in name.split(".")):
            raise InputError(f"{FLAG} {name!r}: a package name is needed, such as {FLAG} my_methods")
        plugins.append(name)
    return rest, plugins


OWN = ("recmodels", "datamodules", "callbacks")
OTHERS = (
    "lightning.pytorch.accelerators",
    "lightning.pytorch.callbacks",
    "lightning.pytorch.loggers",
    "lightning.pytorch.plugins",
    "lightning.pytorch.profilers",
    "lightning.pytorch.strategies",
    "peft",
    "torch.optim",
)
KINDS = (
    Accelerator,
    Callback,
    CheckpointIO,
    ClusterEnvironment,
    LayerSync,
    Logger,
    Optimizer,
    PeftConfig,
    Precision,
    Profiler,
    Strategy,
)
"""What may be built of other people's classes; of our own and of a plug-in's, any class."""

_PLAIN = (bool, int, float, str, bytes, Path, ConfigPath, enum.Enum, datetime.timedelta, type(None))
_plugins: tuple[str, ...] = ()
_load_yaml = get_loader("yaml")  # jsonargparse's own, before it is replaced below


def allow_imports(plugins: Iterable[str] = ()) -> None:
    """Tells the parser what may be named, and imports the plug-ins, so that their classes are known by bare name.

    Environment variables are never read as options, and configs never from a network.

    Raises:
        InputError: a plug-in cannot be imported, or is not one.
    """
    global _plugins
    before, _plugins = _plugins, tuple(plugins)
    os.environ.pop("JSONARGPARSE_DEFAULT_ENV", None)
    set_loader("yaml", _load_plain, (yaml.YAMLError,))
    accept_nested_null()
    restrict_subclasses(lambda path: _within(path, (*OWN, *OTHERS, *_plugins)))
    set_parsing_settings(
        config_read_mode_fsspec_enabled=False,
        config_read_mode_urls_enabled=False,
        instantiate_subclass_spec_in_any=False,
        import_path_denylist=["*", *set(before).difference(_plugins)],
        import_path_allowlist=[*OWN, *OTHERS],
    )
    for name in _plugins:
        try:
            set_parsing_settings(import_path_allowlist=[name])
            importlib.import_module(name)
        except Exception as error:  # whatever a package raises when it is imported is its own
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise InputError(
                f"{FLAG} {name}: cannot be imported ({reason}); install it or put its folder on PYTHONPATH"
            ) from error


def class_named(path: str) -> type | None:
    """The class that a dotted path names, if it may be named and is one; by where it is defined, too.

    Example:
        >>> class_named("torch.optim.AdamW").__name__
        'AdamW'
        >>> class_named("torch.optim.lr_scheduler.warnings.warn") is class_named("os.system") is None
        True
    """
    module, _, name = path.rpartition(".")
    if not _within(module, (*OWN, *OTHERS, *_plugins)):
        return None
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        return None
    if not inspect.isclass(found):
        return None
    if _within(found.__module__, (*OWN, *_plugins)):
        return found
    return found if _within(found.__module__, OTHERS) and issubclass(found, KINDS) else None


def _within(module: str, packages: Iterable[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def refuse_code(config: Namespace) -> None:
    """Refuses a parsed config that names anything but classes that the command line builds."""
    for key, value in _values(config.as_dict(), ""):
        if key.endswith("class_path"):
            if class_named(str(value)) is None:
                where = key.removesuffix("class_path").rstrip(".") or "config"
                raise InputError(f"{where}: {str(value)[:80]!r} must not be named in a config")
        elif not isinstance(value, _PLAIN):
            named = f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__name__)}"
            raise InputError(f"{key}: {named[:80]!r} must not be named in a config")


def _values(node: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, Namespace):
        node = node.as_dict()
    if isinstance(node, dict):
        for name, value in node.items():
            yield from _values(value, f"{key}.{name}" if key else str(name))
    elif isinstance(node, (list, tuple, set, frozenset)):
        for index, value in enumerate(node):
            yield from _values(value, f"{key}[{index}]")
    else:
        yield key, node


def _load_plain(text: str) -> Any:
    """What jsonargparse reads YAML with: what plain data does not need is refused, short forms are spelt out."""
    check_plain(text)
    return spell_out(_load_yaml(text))
