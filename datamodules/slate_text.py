"""Slates as text: what is asked of a model in a case, and the columns that every batch holds of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike

from datamodules.instructions import Instruction, InstructionTemplate
from datamodules.slates import Slate


class Shape(NamedTuple):
    """All that decides a prompt's text beside the titles in it.

    Attributes:
        history: number of titles in the history.
        liked: for each of them whether the user liked it; empty where the prompt does not say.
        listed: number of candidates in the prompt.
        asked: whether the prompt asks about one title.
    """

    history: int
    liked: tuple[bool, ...]
    listed: int
    asked: bool


@dataclass(frozen=True)
class SlateText:
    """Turns slates into instructions and into what every batch holds of them.

    Attributes:
        titles: `[I]` titles by item code.
        template: the wording.
        words: the domain's nouns and verbs in the template's language.
        item_ids: `[I]` ids by item code, for messages.
    """

    titles: list[str]
    template: InstructionTemplate
    words: dict[str, str]
    item_ids: Sequence[str] = ()

    def instruction(self, slate: Slate) -> Instruction:
        """The rendered instruction of a slate."""
        pointwise = self.template.form == "like"
        return self.template.render(
            self.words,
            history=[self.titles[i] for i in slate.history],
            liked=slate.liked.tolist() if pointwise else (),
            candidates=() if pointwise else [self.titles[i] for i in slate.candidates],
            target=self.titles[slate.target] if pointwise else "",
        )

    def shape(self, slate: Slate) -> Shape:
        """What decides the prompt's text beside the titles of `shown`."""
        pointwise, lists = self.template.form == "like", self.template.form == "reranking"
        liked = tuple(slate.liked.tolist()) if pointwise else ()
        return Shape(len(slate.history), liked, len(slate.candidates) if lists else 0, pointwise)

    def shown(self, slate: Slate) -> list[int]:
        """Items whose titles the prompt shows: the history, listed candidates, and the one that is asked about."""
        items: list[int] = slate.history.tolist()
        if self.template.form == "reranking":
            items += slate.candidates.tolist()
        elif self.template.form == "like":
            items.append(slate.target)
        return items

    def prompt(self, shape: Shape, titles: Sequence[str]) -> Instruction:
        """The instruction of a shape with any titles in the places of `shown`; answers that are not listed are left out."""
        rest = titles[shape.history :]
        return self.template.render(
            self.words,
            history=titles[: shape.history],
            liked=shape.liked,
            candidates=rest[: shape.listed],
            target=rest[-1] if shape.asked else "",
        )

    def name(self, item: int) -> str:
        """An item by title and id, for messages."""
        return f"{self.titles[item]!r} (item {self.item_ids[item] if self.item_ids else item})"

    def branches(self, slate: Slate) -> tuple[ArrayLike, ArrayLike]:
        """Item code (or answer number) and gain of each branch."""
        if self.template.form == "like":
            return [0, 1], [slate.target_liked, not slate.target_liked]
        return slate.candidates, slate.candidates == slate.target


def shared_fields(text: SlateText, slates: Sequence[Slate]) -> dict[str, Any]:
    """The columns of `datamodules.batch.Batch` for slates in order."""
    branches = [text.branches(slate) for slate in slates]
    items = [np.asarray(item, dtype=np.int64) for item, _ in branches]
    gains = [np.asarray(gain, dtype=np.float32) for _, gain in branches]
    return {
        "case": torch.tensor([slate.case for slate in slates]),
        "branch_case": torch.from_numpy(np.repeat(np.arange(len(slates)), [len(item) for item in items])),
        "branch_item": torch.from_numpy(np.concatenate(items)),
        "relevance": torch.from_numpy(np.concatenate(gains)),
        "answers": "fixed" if text.template.answers else "candidates",
    }
