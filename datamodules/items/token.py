"""Items as tokens."""

from __future__ import annotations

from pathlib import Path

from datamodules.contract.errors import InputError
from datamodules.contract.items import STARTS
from datamodules.items.title import Title


class Token(Title):
    """One new token for each item, in the history and as the answer, which is then one choice among all items.

    The model gives every item a vector that it reads, and predicts by; both train beside the tuning method, under each of
    them. How P5 (arXiv 2203.13366), CLLM4Rec (arXiv 2311.01343) and E4SRec (arXiv 2312.02443) write items, without
    their encoders.

    Args:
        start: of the vectors: `title`, the mean of the title's word embeddings; `random`, of their size; `events`, that
            mean and the item's factors of the training events, which `PureSVD` ranks by without a language model; or a
            Parquet file that `instructrec export CKPT --items FILE` wrote of any run that learns vectors of items: as they
            are where they are as wide as the backbone, else turned into its width and added to that mean.

    Raises:
        InputError: a start that is none of these.

    Example:
        >>> import polars as pl
        >>> Token().write(pl.DataFrame({"item": ["1"], "title": ["Heat (1995)"]})), Token().token_start
        (['Heat (1995)'], 'title')
    """

    def __init__(self, start: str = "title") -> None:
        if start not in STARTS and Path(start).suffix != ".parquet":
            raise InputError(
                f"data.items.start is {start!r}, must be {', '.join(STARTS)}, or a file FILE.parquet of vectors"
            )
        self.token_start = start
