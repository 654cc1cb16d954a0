"""One trial of a search, inside its own run: it measures validation cases only, and may be given up early."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L

from benchmarks.grid.sampling import prunes
from benchmarks.grid.studies import read_search_file
from benchmarks.metric_names import higher_is_better
from benchmarks.plain_yaml import nearest_hint
from benchmarks.runs.folder import RunFolder, callback_of, write_json
from callbacks.cost_meter import CostMeter
from datamodules.contract.checkpoints import remove_checkpoint
from datamodules.contract.errors import InputError

__all__ = ["Trial", "result_named", "trial_named"]


class Trial(L.Callback):
    """Notes the metric after every validation, and ends a fit that is behind its rivals."""

    def __init__(self, metric: str, pruner: str, rivals: list[list[list[float]]]) -> None:
        self.metric, self.pruner, self.rivals = metric, pruner, rivals
        self.values: list[list[float]] = []
        self.pruned = False

    def state_dict(self) -> dict[str, Any]:
        """What was measured so far."""
        return {"values": self.values, "pruned": self.pruned}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from there."""
        self.values, self.pruned = [list(point) for point in state_dict["values"]], bool(state_dict["pruned"])

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Notes the metric; ends the fit where the trial is given up.

        Raises:
            InputError: the metric is not measured.
        """
        if trainer.sanity_checking:
            return
        measured = trainer.callback_metrics
        if self.metric not in measured:
            known = [name for name in measured if name.startswith("val/")]
            raise InputError(
                f"search.metric is {self.metric!r}, which is not measured{nearest_hint(self.metric, known)}"
            )
        self.values.append([trainer.global_step, float(measured[self.metric])])
        if trainer.state.fn == "fit" and prunes(self.pruner, self.metric, self.rivals, self.values):
            self.pruned = trainer.should_stop = True

    def write_record(self, trainer: L.Trainer, folder: RunFolder, kind: str) -> None:
        """Writes the run's record after the fit, and then removes the weights, which nobody will need."""
        if not trainer.is_global_zero:
            return
        value = (max if higher_is_better(self.metric) else min)(value for _, value in self.values)
        meter = callback_of(trainer, CostMeter)
        costs = meter.costs() if meter else {}
        seconds = float(costs.get("train_seconds", 0.0)) + float(costs.get("validation_seconds", 0.0))
        trial = {
            "metric": self.metric,
            "value": value,
            "values": self.values,
            "pruned": self.pruned,
            "seconds": seconds,
        }
        record = folder.header(kind) | {"status": "finished", "error": None, "trial": trial, "costs": costs}
        write_json(folder.path / "record.json", record)
        for name in ("best.ckpt", "last.ckpt"):
            remove_checkpoint(folder.path / "checkpoints" / name)


def trial_named(path: Path | None) -> Trial | None:
    """The trial of a file that a search has written; None without one.

    Example:
        >>> trial_named(None) is None
        True
    """
    if path is None:
        return None
    content = read_search_file(path, ["metric", "pruner", "rivals"])
    try:
        rivals = [[[float(step), float(value)] for step, value in points] for points in content["rivals"]]
        higher_is_better(content["metric"])
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(f"--search.trial {path}: rivals must be lists of steps and values, metric a name") from error
    return Trial(content["metric"], str(content["pruner"]), rivals)


def result_named(path: Path | None) -> dict[str, Any]:
    """What a search has chosen, for the record of a run that uses it; empty without one.

    Example:
        >>> result_named(None)
        {}
    """
    if path is None:
        return {}
    return {
        key: value for key, value in read_search_file(path, ["trials", "chosen", "metric"]).items() if key != "format"
    }
