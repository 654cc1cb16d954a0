"""Data sets as LightningDataModules, one file for each. The names exported here are the names used in configs.

They are imported on first use, so that whoever needs only `datamodules.sources` does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datamodules.amazon_2014 import Amazon2014
    from datamodules.amazon_2018 import Amazon2018
    from datamodules.amazon_2023 import Amazon2023
    from datamodules.banking77 import Banking77
    from datamodules.book_crossing import BookCrossing
    from datamodules.dialmed import DialMed
    from datamodules.intention_qa import IntentionQA
    from datamodules.lastfm_1k import LastFM1K
    from datamodules.lastfm_2k import LastFM2K
    from datamodules.mind import MIND
    from datamodules.movielens import MovieLens100K
    from datamodules.movielens_1m import MovieLens1M
    from datamodules.movielens_csv import MovieLensCSV
    from datamodules.p5_sequences import P5Sequences
    from datamodules.recbole_files import RecBoleFiles
    from datamodules.steam import Steam
    from datamodules.tabular import Tabular
    from datamodules.tallrec import TALLRecBook, TALLRecMovie

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
    "Amazon2014": "amazon_2014",
    "Amazon2018": "amazon_2018",
    "Amazon2023": "amazon_2023",
    "Banking77": "banking77",
    "BookCrossing": "book_crossing",
    "DialMed": "dialmed",
    "IntentionQA": "intention_qa",
    "LastFM1K": "lastfm_1k",
    "LastFM2K": "lastfm_2k",
    "MIND": "mind",
    "MovieLens100K": "movielens",
    "MovieLens1M": "movielens_1m",
    "MovieLensCSV": "movielens_csv",
    "P5Sequences": "p5_sequences",
    "RecBoleFiles": "recbole_files",
    "Steam": "steam",
    "TALLRecBook": "tallrec",
    "TALLRecMovie": "tallrec",
    "Tabular": "tabular",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"datamodules.{_HOME[name]}"), name)
    raise AttributeError(f"module 'datamodules' has no attribute {name!r}")
