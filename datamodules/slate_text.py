"""Slates as text: what is asked of a model in a case, and the columns that every batch holds of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

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
