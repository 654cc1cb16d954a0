"""Data sets as LightningDataModules, one file for each. The names exported here are the names used in configs.

They are imported on first use, so that whoever needs only `datamodules.sources` does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datamodules.banking77 import Banking77
    from datamodules.dialmed import DialMed
    from datamodules.intention_qa import IntentionQA
    from datamodules.movielens import MovieLens100K
    from datamodules.tallrec import TALLRecBook, TALLRecMovie

__all__ = ["Banking77", "DialMed", "IntentionQA", "MovieLens100K", "TALLRecBook", "TALLRecMovie"]

_HOME = {
    "Banking77": "banking77",
    "DialMed": "dialmed",
    "IntentionQA": "intention_qa",
    "MovieLens100K": "movielens",
    "TALLRecBook": "tallrec",
    "TALLRecMovie": "tallrec",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"datamodules.{_HOME[name]}"), name)
    raise AttributeError(f"module 'datamodules' has no attribute {name!r}")
