"""Writes predictions as they are made: one JSON line a user."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning as L


class PredictionWriter(L.Callback):
    """Writes `predictions.jsonl` into the run's folder during `predict`.

    Each line holds `user` and `ranking`: the best items with `item`, `title`, `score` and `probability` (softmax of
    the scores over the user's candidates, or over the items retrieved where the model searches by beam; for
    like/dislike the probability of Yes).

    Args:
        top: items written for each user.
    """

    def __init__(self, top: int = 10) -> None:
        self.top = top
        self.path: Path | None = None

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Opens a fresh file."""
        self.path = Path(trainer.default_root_dir) / "predictions.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text("")

    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Appends the batch's users."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        lines = []
        for row, case in enumerate(outputs.case.tolist()):
            mine = (outputs.branch_case == row).nonzero().flatten()
            share = outputs.score[mine].double().softmax(0)
            order = outputs.score[mine].argsort(descending=True, stable=True)[: self.top]
            ranking = [
                {
                    "item": data.sequences.item_ids[int(outputs.branch_item[mine[b]])],
                    "title": data.sequences.titles[int(outputs.branch_item[mine[b]])],
                    "score": round(float(outputs.score[mine[b]]), 6),
                    "probability": round(float(share[b]), 6),
                }
                for b in order
            ]
            lines.append(json.dumps({"user": data.requests[case].user, "ranking": ranking}, ensure_ascii=False))
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(line + "\n" for line in lines))
