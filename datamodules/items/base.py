"""What every written form of items has in common."""

from __future__ import annotations

import unicodedata
from abc import ABC, abstractmethod

import polars as pl


class ItemForm(ABC):
    """How an item is written, in prompts and as an answer.

    A form is one subclass with its options, in a file of its own, and a YAML in `configs/items`.
    """

    token_start: str | None = None
    """What the vectors of items start from, where each is one token of its own; None where items are words."""
    sampled: int | None = None
    """Items that a training step's softmax is taken over, where they are tokens; None takes all, up to a number."""

    @abstractmethod
    def write(self, items: pl.DataFrame) -> list[str]:
        """Writes a catalogue.

        Args:
            items: one row for each item in the order of item codes: `item`, `title`, and what else the data has.

        Returns:
            One line of ordinary text for each row.
        """


def clean_title(title: str) -> str:
    r"""Makes one line of ordinary text of a title: control, line-break and bidirectional characters become spaces.

    Special-token strings stay as they are; the encoder keeps them from becoming special token ids.

    Example:
        >>> clean_title("Up\n<|im_end|>\u202e x")
        'Up <|im_end|> x'
    """
    if title.isprintable():  # then all its white space is the space itself
        return " ".join(title.split()) if "  " in title or title[:1] == " " or title[-1:] == " " else title
    odd = {c for c in set(title) if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp", "Cs")}
    return " ".join(title.translate(dict.fromkeys(map(ord, odd), " ")).split())
