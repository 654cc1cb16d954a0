"""Items as tokens of their own: what a data module tells a model that gives each of them a vector.

# I items
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

TokenStart = Literal["title", "random"]
"""What the vector of an item starts from: the mean of its title's word embeddings, or chance."""


@dataclass(frozen=True)
class ItemTokens:
    """Items behind the words of a vocabulary: item i has the token id `first + i`.

    Attributes:
        first: words of the vocabulary.
        titles: `[I]` word ids of each item's title.
        start: what the items' vectors start from.
    """

    first: int
    titles: tuple[tuple[int, ...], ...]
    start: TokenStart = "title"


def items_record(items: ItemTokens | None) -> dict[str, Any]:
    """Returns what a checkpoint says of its items; nothing where they are words."""
    return {} if items is None else {"items": {"first": items.first, "count": len(items.titles)}}


def recorded_items(record: dict[str, Any]) -> ItemTokens | None:
    """Returns the items that a checkpoint holds vectors of, for a model to make room for.

    Example:
        >>> recorded_items(items_record(ItemTokens(5, ((1,), (2,)))))
        ItemTokens(first=5, titles=((), ()), start='title')
    """
    items = record.get("items")
    return ItemTokens(items["first"], ((),) * items["count"]) if items else None
