"""How much of a ranking is there without the history."""

from __future__ import annotations

from typing import Any, cast

import lightning as L
from torch import Tensor

from datamodules.contract.errors import InputError


class HistoryEffect(L.Callback):
    """Scores all titles once for a user without a history, before a test.

    They are stored beside the test's scores. The report tells how alike each list is to the order that every user would
    get (what CFT trains against, arXiv 2410.22809).
    """

    def __init__(self) -> None:
        self.scores: Tensor | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuses data without such a prompt, before anything is trained.

        Raises:
            InputError: the model reads no prompts, or they tell more of a user than the history.
        """
        collator = getattr(cast(Any, trainer).datamodule, "collator", None)
        if getattr(collator, "trie", None) is None or cast(Any, collator).slates.blank_prompt() is None:
            raise InputError(
                "HistoryEffect needs a causal language model, and prompts of the history alone in one wording; use"
                " data.cell P1,I0,T2, or leave the callback out"
            )

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Scores the titles."""
        with cast(Any, trainer).precision_plugin.forward_context():
            scores = cast(Any, pl_module).scores_without_history(cast(Any, trainer).datamodule)
        self.scores = None if scores is None else scores.float().cpu()
