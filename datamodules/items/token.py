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

        sampled: items, drawn anew and uniformly, that a training step's softmax is taken over beside each target, each
            drawn one standing for as many as were not (Jean et al. 2015, doi:10.3115/v1/P15-1001); null takes all, and
            8,192 of more than 100,000. Tests always take all.

    Raises:
        InputError: a start that is none of these, or no items to be drawn.

    Example:
        >>> import polars as pl
        >>> Token().write(pl.DataFrame({"item": ["1"], "title": ["Heat (1995)"]})), Token().token_start
        (['Heat (1995)'], 'title')
    """

    def __init__(self, start: str = "title", sampled: int | None = None) -> None:
        if start not in STARTS and Path(start).suffix != ".parquet":
            raise InputError(
                f"data.items.start is {start!r}, must be {', '.join(STARTS)}, or a file FILE.parquet of vectors"
            )
        if sampled is not None and sampled < 1:
            raise InputError(f"data.items.sampled is {sampled}, must be at least 1, or null")
        self.token_start, self.sampled = start, sampled
