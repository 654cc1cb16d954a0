"""Keeps the score of every case and branch, so that any metric can be computed again later."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor


class ScoreLog(L.Callback):
    """Collects what `test_step` returns as columns; `columns()` gives them in case order."""

    def __init__(self) -> None:
        self._parts: list[Any] = []

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forgets an earlier test."""
        self._parts = []

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps a batch's scores."""
        self._parts.append(outputs)

    @property
    def answers(self) -> str | None:
        """`candidates`, `fixed`, or None before a test."""
        return self._parts[0].answers if self._parts else None

    def columns(self) -> dict[str, Tensor]:
        """Flat columns over all cases, ordered by case, branches in the order the case lists them.

        Returns:
            `case`, `candidates`, `total_relevant` `[U]`, `case_start [U + 1]`, and `item`, `score`, `relevance` `[B]`.
        """
        case = torch.cat([part.case for part in self._parts])
        owner = torch.cat([part.case[part.branch_case] for part in self._parts])
        order = torch.argsort(owner, stable=True)
        by_case = case.argsort(stable=True)
        counts = torch.bincount(torch.searchsorted(case[by_case], owner), minlength=len(case))
        return {
            "case": case[by_case],
            "candidates": torch.cat([part.candidates for part in self._parts])[by_case],
            "total_relevant": torch.cat([part.total_relevant for part in self._parts])[by_case],
            "case_start": torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)]),
            "item": torch.cat([part.branch_item for part in self._parts])[order],
            "score": torch.cat([part.score for part in self._parts])[order],
            "relevance": torch.cat([part.relevance for part in self._parts])[order],
        }
