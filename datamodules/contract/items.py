"""Items as tokens of their own: what a data module tells a model that gives each of them a vector.

# I items
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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
