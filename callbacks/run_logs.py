"""What loggers have written so far, so that a continued run loses no step of it and repeats none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import CSVLogger, WandbLogger


def logs_so_far(trainer: L.Trainer) -> dict[str, Any]:
    """The content of every CSV log, and the ids of W&B runs.

    Returns:
        `csv`, text by place among the loggers; `wandb`, ids.
    """
    texts: dict[int, str] = {}
    runs: list[str] = []
    for number, logger in enumerate(trainer.loggers):
        if isinstance(logger, CSVLogger):
            logger.save()
            file = Path(logger.experiment.metrics_file_path)
            texts[number] = file.read_bytes().decode("utf-8") if file.is_file() else ""
        elif isinstance(logger, WandbLogger):
            runs.append(str(logger.version))
    return {"csv": texts, "wandb": runs}


def put_back_logs(trainer: L.Trainer, logs: dict[str, Any]) -> None:
    """Makes CSV logs what they were; rows of steps that will be taken again are gone."""
    for number, text in logs.get("csv", {}).items():
        logger = trainer.loggers[number] if number < len(trainer.loggers) else None
        if isinstance(logger, CSVLogger) and text:
            Path(logger.experiment.metrics_file_path).write_bytes(text.encode("utf-8"))
            logger.experiment.metrics_keys = text.splitlines()[0].split(",")
