"""Data sets as LightningDataModules, one file for each. The names exported here are the names used in configs.

They are imported on first use, so that whoever needs only `datamodules.sources.fetch` does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datamodules.datasets.amazon import Amazon2014, Amazon2018, Amazon2023
    from datamodules.datasets.banking77 import Banking77
    from datamodules.datasets.book_crossing import BookCrossing
    from datamodules.datasets.dialmed import DialMed
    from datamodules.datasets.intention_qa import IntentionQA
    from datamodules.datasets.lastfm import LastFM1K, LastFM2K
    from datamodules.datasets.mind import MIND
    from datamodules.datasets.movielens import MovieLens1M, MovieLens100K, MovieLensCSV
    from datamodules.datasets.p5 import P5Sequences
    from datamodules.datasets.recbole import RecBoleFiles
    from datamodules.datasets.steam import Steam
    from datamodules.datasets.tabular import Tabular
    from datamodules.datasets.tallrec import TALLRecBook, TALLRecMovie

__all__ = [  # noqa: RUF022  # plain order, as a test compares it
    "Amazon2014",
    "Amazon2018",
    "Amazon2023",
    "Banking77",
    "BookCrossing",
    "DialMed",
    "IntentionQA",
    "LastFM1K",
    "LastFM2K",
    "MIND",
    "MovieLens100K",
    "MovieLens1M",
    "MovieLensCSV",
    "P5Sequences",
    "RecBoleFiles",
    "Steam",
    "TALLRecBook",
    "TALLRecMovie",
    "Tabular",
]

_HOME = {
    "Amazon2014": "amazon",
    "Amazon2018": "amazon",
    "Amazon2023": "amazon",
    "Banking77": "banking77",
    "BookCrossing": "book_crossing",
    "DialMed": "dialmed",
    "IntentionQA": "intention_qa",
    "LastFM1K": "lastfm",
    "LastFM2K": "lastfm",
    "MIND": "mind",
    "MovieLens100K": "movielens",
    "MovieLens1M": "movielens",
    "MovieLensCSV": "movielens",
    "P5Sequences": "p5",
    "RecBoleFiles": "recbole",
    "Steam": "steam",
    "TALLRecBook": "tallrec",
    "TALLRecMovie": "tallrec",
    "Tabular": "tabular",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"datamodules.datasets.{_HOME[name]}"), name)
    raise AttributeError(f"module 'datamodules' has no attribute {name!r}")
