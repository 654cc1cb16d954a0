"""Keeps the score of every case and branch, so that any metric can be computed again later."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import lightning as L
import torch
from torch import Tensor


class ScoreLog(L.Callback):
    """Collects what `test_step` returns as columns; `columns()` gives them in case order.

    Cases under further rules of candidates (`protocol.also`) are kept apart, in a log by rule.

    All scores of a large catalogue for many users fill the memory. Of long lists only the best are kept, and the
    metrics that the model measured while the batch was whole. The first batch decides it for all, so that no case goes
    without its metrics where lists differ in length.

    Args:
        longest: longest list that is kept whole; of longer ones the best are kept, so many as `kept`.
        kept: see there.
    """

    def __init__(self, longest: int = 4096, kept: int = 100) -> None:
        self.longest, self.kept = longest, kept
        self._long = False
        self._parts: list[Any] = []
        self._measured: list[tuple[Tensor, dict[str, Tensor]]] = []
        self.also: dict[str, ScoreLog] = {}

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forgets an earlier test."""
        self._parts, self._measured, self.also = [], [], {}

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps a batch's scores, or of long lists the best and the metrics."""
        for rule, part in outputs.by_rule().items():
            log = self.also.setdefault(rule, ScoreLog(self.longest, self.kept)) if rule else self
            log._keep(part)

    def _keep(self, outputs: Any) -> None:
        if not self._parts:
            longest = int(torch.bincount(outputs.branch_case).max())
            self._long = longest > self.longest and outputs.answers == "candidates"
        if self._long and outputs.metrics:  # without them all lists are kept whole
            measured = {name: value.cpu() for name, value in outputs.metrics.items() if name != "tie_rate"}
            self._measured.append((outputs.case, measured))
            outputs = best_branches(outputs, self.kept)
        self._parts.append(outputs)

    @property
    def answers(self) -> str | None:
        """`candidates`, `fixed`, or None before a test."""
        return self._parts[0].answers if self._parts else None

    def measured(self) -> dict[str, Tensor] | None:
        """Metrics `[U]` in case order where lists were too long to keep, else None."""
        if not self._measured:
            return None
        order = torch.cat([case for case, _ in self._measured]).argsort(stable=True)
        names = self._measured[0][1]
        return {name: torch.cat([values[name] for _, values in self._measured])[order] for name in names}

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


def best_branches(scored: Any, kept: int) -> Any:
    """A batch's scores with the best branches of each case alone, best first; totals still tell of all.

    Example:
        >>> from recmodels.base import CaseScores
        >>> one = torch.ones(1, dtype=torch.long)
        >>> score, item = torch.tensor([1.0, 3.0, 2.0]), torch.tensor([7, 8, 9])
        >>> columns = (one, torch.zeros(3, dtype=torch.long), item, score, torch.zeros(3), 3 * one, one)
        >>> best_branches(CaseScores(*columns, answers="candidates", tokens=0), 2).branch_item.tolist()
        [8, 9]
    """
    count = torch.bincount(scored.branch_case, minlength=len(scored.case))
    start = count.cumsum(0) - count
    table = torch.full((len(count), int(count.max())), -torch.inf)
    table[scored.branch_case, torch.arange(len(scored.score)) - start[scored.branch_case]] = scored.score
    value, position = table.topk(min(kept, table.shape[1]), dim=1)
    best = (start[:, None] + position)[value > -torch.inf]
    columns = ("branch_case", "branch_item", "score", "relevance")
    return replace(scored, **{name: getattr(scored, name)[best] for name in columns})
