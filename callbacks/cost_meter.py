"""What a run costs: parameters, seconds, tokens, memory."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import lightning as L
import torch

from datamodules.contract.findings import Findings


class CostMeter(L.Callback):
    """Measures costs; `costs()` gives them as the run record holds them.

    Validation inside the fit is timed apart, so `train_seconds` is training alone. `train_data_wait_seconds` of them were
    spent waiting for the next batch, as the data module's loaders measure it.

    Attributes:
        truncated: prompts that lost their oldest history in training, validation and test, each time they were used.
    """

    def __init__(self) -> None:
        self._seconds = {"train": 0.0, "validation": 0.0, "test": 0.0}
        self._began: dict[str, float] = {}
        self._tokens = {"train": 0, "test": 0}
        self._unshared = {"train": 0, "test": 0}
        self._steps, self._targets = 0, 0
        self._cases = 0
        self._parameters: dict[str, int] = {}
        self._waited: dict[str, float] = {}
        self._waited_before = 0.0
        self._waiting: dict[str, float] | None = None  # the data module's own clock, while a stage runs
        self.truncated = 0
        self._truncated_before = 0  # the validation under way
        self._peak: int | None = None
        self._optimizer_bytes: int | None = None
        self._best: tuple[float, float] | None = None  # validation quality, and the seconds it took
        self._measured: dict[str, float] = {}

    @property
    def findings(self) -> Findings:
        """How many prompts were shortened."""
        return {"truncated_prompts": self.truncated}

    def state_dict(self) -> dict[str, Any]:
        """What the fit has cost so far, so that a continued run's costs are those of the whole run."""
        now = time.perf_counter()
        running = {clock: now - began for clock, began in self._began.items() if clock == "train"}
        seconds = {clock: spent + running.get(clock, 0.0) for clock, spent in self._seconds.items()}
        waited = self._waited.get("train", 0.0)
        if self._waiting is not None:
            waited += self._waiting.get("train", 0.0) - self._waited_before
        # A validation that is under way will begin again.
        truncated = self._truncated_before if "validation" in self._began else self.truncated
        counts = {"tokens": self._tokens, "unshared": self._unshared, "steps": self._steps, "truncated": truncated}
        counts |= {"targets": self._targets}
        return {"seconds": seconds, "waited": waited, "best": self._best, **counts}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on counting from there."""
        self._seconds, self._steps = dict(state_dict["seconds"]), state_dict["steps"]
        self._targets = state_dict.get("targets", 0)  # of a checkpoint that counted none
        self._tokens, self._unshared = dict(state_dict["tokens"]), dict(state_dict["unshared"])
        self._best = state_dict.get("best")
        self._waited, self.truncated = {"train": state_dict["waited"]}, state_dict["truncated"]

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Counts parameters."""
        self._count(pl_module)

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts the test clock."""
        self._count(pl_module)
        self._begin_waiting(trainer, "test")
        self._start("test")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts the training clock."""
        self._begin_waiting(trainer, "train")
        self._start("train")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts a step, its tokens and its targets."""
        self._steps += 1
        self._targets += getattr(batch, "targets", 0)
        pl_module.log("train/targets", float(self._targets), batch_size=1)
        self._add_batch("train", batch, batch)

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Counts shortened prompts."""
        if not trainer.sanity_checking:
            self.truncated += getattr(batch, "truncated", 0)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stops the training clock while validating."""
        if "train" in self._began:
            self._stop("train")
        self._truncated_before = self.truncated
        self._start("validation")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Resumes the training clock."""
        self._stop("validation")
        self._compare(trainer)
        if trainer.state.fn == "fit":
            self._start("train")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stops the training clock."""
        if "train" in self._began:
            self._stop("train")
        self._end_waiting("train")
        self._optimizer_bytes = sum(_state_bytes(optimizer) for optimizer in getattr(trainer, "optimizers", None) or ())

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Counts cases and tokens."""
        self._cases += len(batch.case)
        self._add_batch("test", outputs, batch)  # a model that retrieves does not touch every candidate

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stops the test clock."""
        self._stop("test")
        self._end_waiting("test")
        self._peak = peak_memory()

    def add(self, costs: dict[str, float]) -> None:
        """Takes costs that were measured apart; FLOPs of a token become those of the training."""
        self._measured |= costs

    def costs(self) -> dict[str, float | int]:
        """Everything measured so far; what was not measured is absent."""
        made: dict[str, float | int] = dict(self._parameters)
        made["peak_memory_bytes"] = peak_memory() if self._peak is None else self._peak
        if self._steps:
            made["train_steps"] = self._steps
            if self._targets:
                made["train_targets"] = self._targets
            made["train_seconds"] = round(self._seconds["train"], 3)
            if self._optimizer_bytes is not None:
                made["optimizer_state_bytes"] = self._optimizer_bytes
            if self._best is not None:
                made["best_validation_seconds"] = round(self._best[1], 3)
            made["validation_seconds"] = round(self._seconds["validation"], 3)
        if self._cases:
            made["test_seconds"] = round(self._seconds["test"], 3)
            made["test_cases_per_second"] = round(self._cases / max(self._seconds["test"], 1e-9), 3)
        for stage, tokens in self._tokens.items():
            if tokens:
                made[f"{stage}_tokens"] = tokens
                made[f"{stage}_tokens_per_second"] = round(tokens / max(self._seconds[stage], 1e-9), 1)
            if self._unshared[stage]:
                made[f"{stage}_tokens_unshared"] = self._unshared[stage]
        for stage, seconds in self._waited.items():
            made[f"{stage}_data_wait_seconds"] = round(seconds, 3)
            made[f"{stage}_data_wait_fraction"] = round(seconds / max(self._seconds[stage], 1e-9), 4)
        made |= self._measured
        if self._tokens["train"] and "train_flops_per_token" in made:
            made["train_flops"] = made["train_flops_per_token"] * self._tokens["train"]
        return made

    def _compare(self, trainer: L.Trainer) -> None:
        """Remembers when the best validation was over: seconds of training and of validation, both counted."""
        checkpoint: Any = trainer.checkpoint_callback
        monitor = getattr(checkpoint, "monitor", None) or "val/quality"
        value = trainer.callback_metrics.get(monitor)
        if trainer.state.fn != "fit" or value is None:
            return
        sign = -1.0 if getattr(checkpoint, "mode", "max") == "min" else 1.0
        if self._best is None or sign * float(value) > self._best[0]:
            self._best = (sign * float(value), self._seconds["train"] + self._seconds["validation"])

    def _begin_waiting(self, trainer: L.Trainer, stage: str) -> None:
        self._waiting = _waited(trainer)
        if self._waiting is not None:
            self._waited_before = self._waiting.get(stage, 0.0)

    def _end_waiting(self, stage: str) -> None:
        if self._waiting is not None:
            spent = self._waiting.get(stage, 0.0) - self._waited_before
            self._waited[stage] = self._waited.get(stage, 0.0) + spent
            self._waiting = None

    def _count(self, module: L.LightningModule) -> None:
        sizes = [(_weights(value), value.requires_grad) for value in module.parameters()]
        self._parameters = {
            "trainable_parameters": sum(size for size, trains in sizes if trains),
            "total_parameters": sum(size for size, _ in sizes),
        }

    def _add_batch(self, stage: str, used: Any, batch: Any) -> None:
        self.truncated += getattr(batch, "truncated", 0)
        self._tokens[stage] += getattr(used, "tokens", 0)
        self._unshared[stage] += getattr(batch, "tokens_unshared", 0)

    def _start(self, clock: str) -> None:
        self._began[clock] = time.perf_counter()

    def _stop(self, clock: str) -> None:
        self._seconds[clock] += time.perf_counter() - self._began.pop(clock)


def _weights(value: torch.Tensor) -> int:
    """Weights that a parameter stands for: one in four bits holds two in a byte, and knows the shape it had."""
    packed = getattr(value, "quant_state", None)
    return value.numel() if packed is None else int(torch.Size(packed.shape).numel())


def _state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of what an optimiser remembers beside the parameters."""
    held = (value for state in optimizer.state.values() for value in state.values())
    return sum(value.numel() * value.element_size() for value in held if isinstance(value, torch.Tensor))


def _waited(trainer: L.Trainer) -> dict[str, float] | None:
    """Seconds by stage that the data module's loaders were waited for; None where it does not measure."""
    return getattr(getattr(trainer, "datamodule", None), "waited", None)


def peak_memory() -> int:
    """Largest memory this process has held, in bytes: of the CUDA allocator where there is one, else resident.

    Example:
        >>> peak_memory() > 10_000_000
        True
    """
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_allocated())
    status = Path("/proc/self/status")
    if status.exists():  # Linux; resource.ru_maxrss would inherit the parent's peak across fork
        peak = next((line for line in status.read_text().splitlines() if line.startswith("VmHWM")), None)
        if peak is not None:
            return int(peak.split()[1]) * 1024
    import psutil

    return int(psutil.Process().memory_info().rss)  # the present size: a lower bound of the peak
