"""Grid folders as a runner leaves them, with runs whose users' true items have chosen ranks."""

from __future__ import annotations

import json
import math
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

USERS, CANDIDATES = 200, 20
FINGERPRINT, OTHER = "a" * 64, "b" * 64
HOSTILE = '<script>alert("title")</script>'
Edit = Callable[[dict[str, Any]], object]


@dataclass
class Grid:
    """A grid's folder under construction."""

    directory: Path

    def add(
        self,
        name: str,
        seed: int = 1,
        rank: float = 5.0,
        *,
        kind: str = "tuned",
        backbone: str | None = "smollm2",
        cell: str | None = None,
        edit: Edit | None = None,
        users: int = USERS,
        scores: bool = True,
        learning_rate: float | None = 1e-3,
        search: bool = False,
        parameters: float = 460_800,
        curves: bool = False,
    ) -> Path:
        """A finished run whose users' true items have ranks spread around `rank`."""
        folder = (
            self.directory / "runs" / (cell or f"model={name},seed_everything={seed}-{zlib.crc32(name.encode()):08x}")
        )
        folder.mkdir(parents=True)
        values = per_user(f"{name}{seed}", rank, users)
        record: dict[str, Any] = {
            "format": 1,
            "status": "finished",
            "error": None,
            "name": name,
            "kind": kind,
            "model": {"class": name.title(), "backbone": backbone},
            "data": {"class": "MovieLens100K"},
            "protocol": {
                "fingerprint": FINGERPRINT,
                "description": {"split": "leave-one-out by time", "candidates": "uniform, 1 + 19, seed 42"},
                "statistics": {"users": 943, "items": 1682},
                "task": "ranking",
                "num_candidates": CANDIDATES,
            },
            "seed": seed,
            "config": {
                "model": {"init_args": {"lr": learning_rate, "rank": 8}},
                "trainer": {"max_steps": 100},
            },
            "costs": {
                "trainable_parameters": parameters,
                "peak_memory_bytes": 1.3e9,
                "train_seconds": 60 + parameters / 5e4,
            },
            "metrics": {f"test/{metric}": float(column.mean()) for metric, column in values.items()},
            "guards": {"reloaded_score_difference": 0.0, "parameters_moved": True},
            "samples": [
                {
                    "user": "u1",
                    "prompt": f"watched {HOSTILE}",
                    "ranking": [{"title": HOSTILE, "score": -3.25, "relevant": True}],
                }
            ],
        }
        if search:
            record["search"] = {"learning_rate": [1e-3, 1e-4]}
        if kind != "tuned":
            del record["costs"]["trainable_parameters"], record["costs"]["train_seconds"]
        if edit is not None:
            edit(record)
        (folder / "record.json").write_text(json.dumps(record))
        if scores:
            np.savez(folder / "scores.npz", user=np.array([f"u{i}" for i in range(users)]), **values)
        if curves:
            log_curves(folder, 0.3 + seed / 100 - rank / 50)
        return folder


def log_curves(folder: Path, start: float) -> None:
    """Learning curves from `start`, by the logger that runs have."""
    from lightning.pytorch.loggers import CSVLogger

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of a folder that is not empty, which a run's is not either
        logger = CSVLogger(folder, name="", version="")
        for step in range(0, 100, 2):
            logger.log_metrics({"train/loss": 3 * math.exp(-step / 40) + 1}, step)
        for step in range(19, 100, 20):
            logger.log_metrics({"val/hr@5": start + step / 600}, step)
        logger.save()


def per_user(key: str, rank: float, users: int) -> dict[str, np.ndarray]:
    """Metrics of users whose true item has a random rank."""
    generator = np.random.default_rng(list(key.encode()))
    ranks = np.clip(generator.geometric(1 / rank, users), 1, CANDIDATES)
    return {
        "hr@5": (ranks <= 5).astype(float),
        "hr@10": (ranks <= 10).astype(float),
        "ndcg@5": np.where(ranks <= 5, 1 / np.log2(ranks + 1), 0.0),
        "mrr": 1 / ranks,
    }
