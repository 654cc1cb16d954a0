"""A few prompts with their ranked answers: what the model was really asked and what it said."""

from __future__ import annotations

from typing import Any

import lightning as L


class SampleTable(L.Callback):
    """Keeps the first cases of the test with their ranked answers, and logs them to W&B as a table.

    Args:
        count: number of cases.
        top: answers kept of each.
    """

    def __init__(self, count: int = 5, top: int = 10) -> None:
        self.count, self.top = count, top
        self.samples: list[dict[str, Any]] = []

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forgets an earlier test."""
        self.samples = []

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps cases until there are enough, with their candidates under the main rule."""
        outputs = outputs.by_rule().get("")
        if outputs is None:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        for row, case in enumerate(outputs.case.tolist()):
            if len(self.samples) == self.count:
                return
            mine = (outputs.branch_case == row).nonzero().flatten()
            ranked = mine[outputs.score[mine].argsort(descending=True, stable=True)][: self.top]
            self.samples.append(
                {
                    "user": data.user_of("test", case),
                    "prompt": data.sample_prompt("test", case),
                    "ranking": [
                        {
                            "title": data.answer_text(int(outputs.branch_item[b])),
                            "score": round(float(outputs.score[b]), 4),
                            "relevant": bool(outputs.relevance[b] > 0),
                        }
                        for b in ranked
                    ],
                }
            )

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Logs the table where W&B is."""
        from lightning.pytorch.loggers import WandbLogger

        rows = [
            [sample["user"], sample["prompt"], rank + 1, answer["title"], answer["score"], answer["relevant"]]
            for sample in self.samples
            for rank, answer in enumerate(sample["ranking"])
        ]
        columns = ["user", "prompt", "rank", "answer", "score", "relevant"]
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_table("test/samples", columns=columns, data=rows)
