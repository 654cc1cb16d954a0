"""Items by their titles."""

from __future__ import annotations

import polars as pl

from datamodules.items.base import ItemForm, clean_title


class Title(ItemForm):
    r"""The title alone, as in InstructRec (arXiv 2305.07001).

    Example:
        >>> Title().write(pl.DataFrame({"item": ["1"], "title": ["Heat \n (1995)"]}))
        ['Heat (1995)']
    """

    def write(self, items: pl.DataFrame) -> list[str]:
        """Writes every item's title in one line."""
        return [clean_title(title) for title in items["title"]]
