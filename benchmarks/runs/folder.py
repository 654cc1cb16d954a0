"""What a run leaves behind: the record, and the scores and metrics of every user."""

from __future__ import annotations

import io
import json
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from itertools import chain, count
from pathlib import Path
from typing import Any, cast

import lightning as L
import numpy as np
import torch
from torch import Tensor

from benchmarks.paths import CHECKOUT, record_path, scores_path
from benchmarks.runs.case_features import fact_arrays
from callbacks.cost_meter import CostMeter
from callbacks.history_effect import HistoryEffect
from callbacks.sample_table import SampleTable
from callbacks.score_log import ScoreLog
from datamodules.base import InstructionDataModule
from datamodules.contract.checkpoints import read_checkpoint, remove_checkpoint
from datamodules.contract.errors import InputError
from datamodules.contract.files import sha256_of, write_atomic
from datamodules.contract.findings import Findings
from datamodules.protocol.sequences import Sequences
from recmodels.base import Recommender
from recmodels.metrics.ranking import informative_cutoffs, pad_branches, user_values
from recmodels.metrics.rating import rating_values

PACKAGES = (
    "instructrec",
    "torch",
    "lightning",
    "transformers",
    "peft",
    "torchmetrics",
    "jsonargparse",
    "polars",
    "numpy",
)


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run.

    Attributes:
        path: the folder; its name is the cell's id.
        config: the whole resolved config.
        name: of the row in tables.
        search: how the run's settings were chosen; empty where nobody searched.
    """

    path: Path
    config: dict[str, Any]
    name: str
    search: dict[str, Any] = field(default_factory=dict)

    def write_record(
        self, trainer: L.Trainer, model: Recommender, data: InstructionDataModule, findings: Findings
    ) -> None:
        """Writes `scores.npz`, then `record.json` as the very last act of a finished run.

        Before them, for each rule of `protocol.also`, `scores.<rule>.npz` and `record.<rule>.json`: the same record with
        that rule's protocol and metrics, and without what is told once (costs, samples).
        """
        if not trainer.is_global_zero:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        samples = callback_of(trainer, SampleTable)
        for callback in cast(Any, trainer).callbacks:
            findings |= cast(Findings, getattr(callback, "findings", {}))
        record = self.header(model.kind) | {"status": "finished", "error": None}
        rest = {"device": _device(trainer), "guards": findings}
        for rule, sequences in data.frozen.further.items():
            further = record | {"rule": rule} | self._result(trainer, model, data, sequences, rule) | rest
            write_json(record_path(self.path, rule), further)
        record |= {"also": list(data.frozen.further)} if data.frozen.further else {}
        record |= self._result(trainer, model, data, data.sequences) | rest
        record |= {"costs": self._costs(trainer), "samples": samples.samples if samples else []}
        write_json(self.path / "record.json", record)
        _report_to_loggers(trainer, record)

    def _result(
        self, trainer: L.Trainer, model: Recommender, data: InstructionDataModule, sequences: Sequences, rule: str = ""
    ) -> dict[str, Any]:
        """Writes the scores under a rule of candidates; returns what the record says of them."""
        log, stored = callback_of(trainer, ScoreLog), scores_path(self.path, rule)
        log = log.also.get(rule) if log is not None and rule else log
        if log is not None and log.answers:
            arrays, effect = score_arrays(log, data, model.cutoffs), callback_of(trainer, HistoryEffect)
            if effect is not None and effect.scores is not None:
                arrays["blank_score"] = effect.scores.numpy()
            write_arrays(stored, arrays)
        stage = f"test/{rule}/" if rule else "test/"
        measured = {
            f"test/{k.removeprefix(stage)}": v for k, v in trainer.callback_metrics.items() if k.startswith(stage)
        }
        return {
            "scores_sha256": sha256_of(stored) if stored.exists() else None,
            "protocol": {
                "fingerprint": data.fingerprint_of(sequences),
                "description": sequences.description | data.description,
                "statistics": sequences.description["statistics"],
                "task": data.cases_kind,
                "num_candidates": sequences.longest_list if rule else data.num_candidates,
            },
            "metrics": {name: float(value) for name, value in measured.items() if name.count("/") == 1},
        }

    def header(self, kind: str | None = None) -> dict[str, Any]:
        """The part of a record that is known before anything has run."""
        model, data = self.config["model"], self.config["data"]
        return {
            "format": 1,
            "name": self.name,
            "cell": self.path.name,
            "kind": kind,
            "model": {
                "class": model["class_path"].rsplit(".", 1)[-1],
                "backbone": model.get("init_args", {}).get("backbone"),
            },
            "data": {"class": data["class_path"].rsplit(".", 1)[-1]},
            "seed": self.config.get("seed_everything"),
            "config": json.loads(json.dumps(self.config, default=str)),
            **({"search": self.search} if self.search else {}),
            "versions": installed_versions(),
            **checkout_state(),
        }

    def begin(self, fresh: bool) -> None:
        """Removes the record of an earlier run here, and where the run is fresh its checkpoints, too."""
        (self.path / "record.json").unlink(missing_ok=True)
        for path in (*self.path.glob("record.*.json"), *self.path.glob("scores*.npz")):
            path.unlink()
        if fresh:
            for name in ("best.ckpt", "last.ckpt"):
                remove_checkpoint(self.path / "checkpoints" / name)

    def write_end(self, status: str, error: str, exit_code: int | None = None) -> None:
        """Records that the run has ended without a result (`failed` or `interrupted`), and why."""
        self.path.mkdir(parents=True, exist_ok=True)
        ended = {"status": status, "error": error} | ({} if exit_code is None else {"exit_code": exit_code})
        write_json(self.path / "record.json", self.header() | ended)

    def _costs(self, trainer: L.Trainer) -> dict[str, Any]:
        meter = callback_of(trainer, CostMeter)
        costs: dict[str, Any] = meter.costs() if meter else {}
        last = self.path / "checkpoints" / "last.ckpt"
        if last.exists():
            trained = read_checkpoint(last, mmap=True)["state_dict"]
            costs["checkpoint_bytes"] = last.stat().st_size
            costs["trained_bytes"] = sum(value.numel() * value.element_size() for value in trained.values())
        return costs


def has_record(folder: Path) -> bool:
    """Whether a run has ended in a folder, with a result or without."""
    return (folder / "record.json").is_file()


def holds_finished_run(folder: Path) -> bool:
    """Whether a folder holds a run's result; a record that cannot be read may be one.

    Example:
        >>> holds_finished_run(Path("nowhere"))
        False
    """
    try:
        return str(json.loads((folder / "record.json").read_bytes())["status"]) not in ("failed", "interrupted")
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError, KeyError, TypeError):
        return True


def output_folder(out: Path | None, command: str, overwrite: bool) -> Path:
    """The folder that a command writes into.

    Args:
        out: `--out`; without it `results/run`, or for `fit` and `test` the first of `results/run-2`, ... where that
            holds a finished run.
        command: `fit` and `test` write a record.
        overwrite: a finished run there may be replaced.

    Raises:
        InputError: `out` holds a finished run, which `fit` or `test` would delete.
    """
    first, writes = Path("results/run"), command in ("fit", "test")
    if out is None:
        numbered = (first.with_name(f"run-{number}") for number in count(2))
        return next(path for path in chain([first], numbered) if overwrite or not (writes and holds_finished_run(path)))
    if writes and not overwrite and holds_finished_run(out):
        raise InputError(f"--out {out} holds a finished run; add --overwrite to replace it, or name another --out")
    return out


def score_arrays(log: ScoreLog, data: InstructionDataModule, cutoffs: tuple[int, ...]) -> dict[str, Any]:
    """Flat columns of all scores that were kept, every metric by user, and what the cases are about."""
    columns = log.columns()
    arrays: dict[str, Any] = {name: value.numpy() for name, value in columns.items() if name != "case"}
    arrays["user"] = np.array([data.user_of("test", case) for case in columns["case"].tolist()])
    listed = columns["item"].numpy() if log.answers == "candidates" else np.empty(0, dtype=np.int64)
    arrays |= fact_arrays(data, columns["case"].numpy(), listed)
    return arrays | metric_arrays(str(log.answers), columns, cutoffs, log.measured())


def metric_arrays(
    answers: str, columns: Mapping[str, Tensor], cutoffs: tuple[int, ...], measured: dict[str, Tensor] | None = None
) -> dict[str, Any]:
    """Every metric of every case, or what it follows from.

    Args:
        answers: `candidates`, `fixed` or `ratings`.
        columns: as `ScoreLog.columns` gives them.
        cutoffs: the k of HR@k and NDCG@k.
        measured: rank metrics of lists that are no longer whole.
    """
    starts = columns["case_start"]
    owner = torch.repeat_interleave(torch.arange(len(starts) - 1), starts.diff())
    if answers == "candidates":
        return {name: v.numpy() for name, v in (measured or user_metrics(owner, columns, cutoffs)).items()}
    table, _ = pad_branches(columns["score"], owner, len(starts) - 1, 0.0)
    relevance, _ = pad_branches(columns["relevance"], owner, len(starts) - 1, 0.0)
    if answers == "fixed":
        label = (relevance[:, 0] > 0).numpy().astype(np.int8)
        return {"probability": table.double().softmax(1)[:, 0].numpy(), "label": label}
    value, _ = pad_branches(rating_values(columns["item"]), owner, len(starts) - 1, 0.0)
    difference = ((table.double().softmax(1) * value).sum(1) - (relevance * value).sum(1)).numpy()
    return {"mse": difference**2, "mae": np.abs(difference)}


def user_metrics(owner: Tensor, columns: Mapping[str, Tensor], cutoffs: tuple[int, ...]) -> dict[str, Tensor]:
    """Every rank metric of every case, `[U]`.

    Args:
        owner: `[B]` case of each branch, from 0 and in order.
        columns: `score` and `relevance` `[B]`, `candidates` and `total_relevant` `[U]`.
        cutoffs: the k of HR@k and NDCG@k.

    Example:
        >>> columns = {"score": torch.tensor([3.0, 2.0]), "relevance": torch.tensor([0.0, 1.0])}
        >>> columns |= {"candidates": torch.tensor([2]), "total_relevant": torch.tensor([1])}
        >>> user_metrics(torch.tensor([0, 0]), columns, (1,))["mrr"].tolist()
        [0.5]
    """
    total = columns["total_relevant"]  # with those that retrieval missed
    table, mask = pad_branches(columns["score"], owner, len(total), 0.0)
    relevance, _ = pad_branches(columns["relevance"], owner, len(total), 0.0)
    informative = informative_cutoffs(cutoffs, int(columns["candidates"].max()))
    values = user_values(table, relevance, informative, mask, total)
    return {name: value for name, value in values.items() if name != "tie_rate"}


def write_json(path: Path, value: Any) -> None:
    """Writes JSON so that the file is whole or not there: fresh name, fsync, rename."""
    write_atomic(path, json.dumps(value, indent=1, ensure_ascii=False))


def write_arrays(path: Path, arrays: dict[str, Any]) -> None:
    """Writes arrays without pickle, whole or not at all."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    write_atomic(path, buffer.getvalue())


def callback_of(trainer: L.Trainer, kind: type[Any]) -> Any:
    """The trainer's callback of a class, or None."""
    return next((c for c in cast("list[L.Callback]", trainer.callbacks) if isinstance(c, kind)), None)  # type: ignore[attr-defined]


def _report_to_loggers(trainer: L.Trainer, record: dict[str, Any]) -> None:
    from lightning.pytorch.loggers import WandbLogger

    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.summary.update({f"cost/{k}": v for k, v in record["costs"].items()})
            logger.experiment.summary["record"] = json.dumps({k: v for k, v in record.items() if k != "samples"})
            logger.experiment.summary["protocol"] = record["protocol"]["fingerprint"]
            logger.experiment.finish()  # an offline run's file is whole before the run says that it is done


def _device(trainer: L.Trainer) -> dict[str, Any]:
    on_gpu = torch.cuda.is_available() and trainer.strategy.root_device.type == "cuda"
    name = torch.cuda.get_device_name() if on_gpu else platform.processor() or platform.machine()
    return {
        "name": name,
        "cores": torch.get_num_threads(),
        "processes": trainer.world_size,
        "precision": str(trainer.precision),
    }


def installed_versions(*others: str) -> dict[str, str]:
    """Versions of Python, of the packages that every result depends on, and of others; what is missing is absent."""
    versions = {"python": platform.python_version()}
    for package in (*PACKAGES, *others):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


@cache
def checkout_state() -> dict[str, Any]:
    """Commit of the checkout this code runs from; absent outside one."""
    if CHECKOUT is None:  # a virtual environment may lie in somebody's repository
        return {}

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(CHECKOUT), *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return {}
