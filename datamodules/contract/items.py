"""Items as tokens of their own: what a data module tells a model that gives each of them a vector.

# I items
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from datamodules.contract.batch import EventBatch
from datamodules.contract.errors import InputError

STARTS = ("title", "random", "events")
"""What the vector of an item can start from: the mean of its title's word embeddings, chance, or that mean and what the training
events say of the item. Anything else is a file of vectors."""


@dataclass(frozen=True)
class ItemTokens:
    """Items behind the words of a vocabulary: item i has the token id `first + i`.

    Attributes:
        first: words of the vocabulary.
        titles: `[I]` word ids of each item's title.
        start: what the items' vectors start from: one of `STARTS`, or a file.
        events: training events, where the vectors start from them.
        vectors: `[I, D]` of the file.
        sampled: items that a training step's softmax is taken over beside each target; None takes all.
        key: tells catalogues apart: a checksum of the titles in their order, or the one that a checkpoint recorded.
    """

    first: int
    titles: tuple[tuple[int, ...], ...]
    start: str = "title"
    events: EventBatch | None = field(default=None, compare=False, repr=False)
    vectors: Tensor | None = field(default=None, compare=False, repr=False)
    sampled: int | None = None
    key: str = ""

    def __post_init__(self) -> None:
        """Makes the key where none is given."""
        if not self.key:
            object.__setattr__(self, "key", hashlib.sha256(repr(self.titles).encode()).hexdigest())


def items_record(items: ItemTokens | None) -> dict[str, Any]:
    """Returns what a checkpoint says of its items; nothing where they are words."""
    return {} if items is None else {"items": {"first": items.first, "count": len(items.titles), "key": items.key}}


def items_to_load(items: ItemTokens | None, record: dict[str, Any]) -> ItemTokens | None:
    """Returns the items that a model makes room for: those of its data, else those that a checkpoint holds vectors of.

    Raises:
        InputError: the data's items are not those of the checkpoint, so that vectors would stand for other items.

    Example:
        >>> items = ItemTokens(5, ((1,), (2,)))
        >>> items_to_load(None, items_record(items)).titles, items_to_load(items, items_record(items)) == items
        (((), ()), True)
    """
    held = record.get("items")
    if items is not None and held is not None and held["key"] != items.key:
        raise InputError(
            f"the checkpoint holds vectors of {held['count']} items, and the data's {len(items.titles)} are others or in"
            " another order: use its run's own data"
        )
    if items is None and held is not None:
        return ItemTokens(held["first"], ((),) * held["count"], key=held["key"])
    return items
