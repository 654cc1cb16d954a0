"""Slates as text: what is asked of a model in a case, and the columns that every batch holds of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from datamodules.instructions import Instruction, InstructionTemplate
from datamodules.slates import Slate


@dataclass(frozen=True)
class SlateText:
    """Turns slates into instructions and into what every batch holds of them.

    Attributes:
        titles: `[I]` titles by item code.
        template: the wording.
        words: the domain's nouns and verbs in the template's language.
    """

    titles: list[str]
    template: InstructionTemplate
    words: dict[str, str]

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

    def branches(self, slate: Slate) -> tuple[list[int], list[float]]:
        """Item code (or answer number) and gain of each branch."""
        if self.template.form == "like":
            return [0, 1], [float(slate.target_liked), float(not slate.target_liked)]
        return slate.candidates.tolist(), [float(item == slate.target) for item in slate.candidates]


def shared_fields(text: SlateText, slates: Sequence[Slate]) -> dict[str, Any]:
    """The columns of `datamodules.batch.Batch` for slates in order."""
    items: list[int] = []
    gains: list[float] = []
    owner: list[int] = []
    for number, slate in enumerate(slates):
        item, gain = text.branches(slate)
        items += item
        gains += gain
        owner += [number] * len(item)
    return {
        "case": torch.tensor([slate.case for slate in slates]),
        "branch_case": torch.tensor(owner),
        "branch_item": torch.tensor(items),
        "relevance": torch.tensor(gains),
        "answers": "fixed" if text.template.answers else "candidates",
    }
