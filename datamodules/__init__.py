"""Data sets as LightningDataModules, one file for each. The names exported here are the names used in configs.

They are imported on first use, so that whoever needs only `datamodules.sources` does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datamodules.movielens import MovieLens100K

__all__ = ["MovieLens100K"]

_HOME = {"MovieLens100K": "movielens"}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"datamodules.{_HOME[name]}"), name)
    raise AttributeError(f"module 'datamodules' has no attribute {name!r}")
