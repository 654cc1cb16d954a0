"""Data sets as LightningDataModules, one file for each. The names exported here are the names used in configs.

They are imported on first use, so that whoever needs only `datamodules.sources` does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datamodules.amazon_2014 import Amazon2014
    from datamodules.amazon_2018 import Amazon2018
    from datamodules.amazon_2023 import Amazon2023
    from datamodules.movielens import MovieLens100K
    from datamodules.movielens_1m import MovieLens1M
    from datamodules.movielens_csv import MovieLensCSV
    from datamodules.p5_sequences import P5Sequences

__all__ = [  # noqa: RUF022  # plain order, as a test compares it
    "Amazon2014",
    "Amazon2018",
    "Amazon2023",
    "MovieLens100K",
    "MovieLens1M",
    "MovieLensCSV",
    "P5Sequences",
]

_HOME = {
    "Amazon2014": "amazon_2014",
    "Amazon2018": "amazon_2018",
    "Amazon2023": "amazon_2023",
    "MovieLens100K": "movielens",
    "MovieLens1M": "movielens_1m",
    "MovieLensCSV": "movielens_csv",
    "P5Sequences": "p5_sequences",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"datamodules.{_HOME[name]}"), name)
    raise AttributeError(f"module 'datamodules' has no attribute {name!r}")
