"""Vectors of items as a Parquet file: what a finished run has learnt of items, for another model or a search index.

# I items, D dimensions
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl
import torch
from torch import Tensor

from datamodules.contract.errors import InputError
from datamodules.contract.files import write_atomic


def write_item_vectors(path: Path, items: Sequence[str], titles: Sequence[str], vectors: Tensor) -> None:
    """Writes columns `item` (the data's own ids), `title` and `vector` (float32), a row for each item.

    Args:
        path: of the file.
        items: `[I]` ids.
        titles: `[I]` names, for people.
        vectors: `[I, D]`.
    """
    values = vectors.detach().float().cpu().contiguous().numpy()
    vector = pl.Series("vector", values, dtype=pl.Array(pl.Float32, values.shape[1]))
    table = pl.DataFrame({"item": list(items), "title": list(titles), "vector": vector})
    write_atomic(path, table.write_parquet)


def read_item_vectors(path: Path, items: Sequence[str]) -> Tensor:
    """Reads vectors `[I, D]` of some items, in their order, whatever the order of the file.

    Raises:
        InputError: no such file, other columns, vectors that are not numbers of one length, an item twice or not at all.
    """
    try:
        table = pl.read_parquet(path, columns=["item", "vector"], glob=False)
    except FileNotFoundError as error:
        raise InputError(
            f"data.items.start: {path} does not exist; `instructrec export CKPT --items FILE` writes one"
        ) from error
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InputError(
            f"data.items.start: {path} is no file of item vectors: {str(error).splitlines()[0]}"
        ) from error
    known = pl.DataFrame({"item": list(items)})
    table = table.with_columns(pl.col("item").cast(pl.String))
    if table["item"].is_duplicated().any():
        twice = table.filter(pl.col("item").is_duplicated())["item"][0]
        raise InputError(f"data.items.start: {path} holds item {twice!r} twice")
    missing = known.join(table, on="item", how="anti")
    if len(missing):
        raise InputError(
            f"data.items.start: {path} lacks {len(missing)} of the data's {len(known)} items, such as {missing['item'][0]!r}"
        )
    found = known.join(table, on="item", how="left", maintain_order="left")["vector"]
    try:
        values = found.list.to_array(found.list.len()[0]) if isinstance(found.dtype, pl.List) else found
        vectors = torch.from_numpy(values.cast(pl.Array(pl.Float32, values.dtype.shape[0])).to_numpy().copy())  # type: ignore[attr-defined]
    except (pl.exceptions.PolarsError, AttributeError, TypeError) as error:
        raise InputError(
            f"data.items.start: {path}: column vector is {found.dtype}, must be numbers of one length"
        ) from error
    if not torch.isfinite(vectors).all():
        raise InputError(f"data.items.start: {path}: column vector holds numbers that are not finite")
    return vectors
