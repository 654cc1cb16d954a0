"""Training steps on the same examples: trees whose branches share a history, against one sequence an example."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader

from benchmarks.perf.measure import Comparison, ComparisonRule, Side, Turn, Values
from benchmarks.perf.scoring import quiet_trainer
from benchmarks.perf.setting import Setting, fill_adapters, flat_gradient, synchronise
from benchmarks.perf.workloads import ALPHA, LEARNING_RATE, NO_CLIP, RANK, WORKLOADS, draw_windows
from recmodels.methods.base import InstructionRecommender
from recmodels.methods.full import FullTuning
from recmodels.methods.lora import LoRATuning


class SteadyOptimizer:
    """Makes the optimiser at the first turn and hands the same one to later turns, whose steps allocate no moments.

    The peers keep theirs likewise.
    """

    def __init__(self) -> None:
        self.made: torch.optim.Optimizer | None = None

    def __call__(self, groups: Any) -> torch.optim.Optimizer:
        """AdamW over the parameters; another one only for others than before."""
        fresh = torch.optim.AdamW(groups, lr=LEARNING_RATE)
        if self.made is None or parameters_of(self.made) != parameters_of(fresh):
            self.made = fresh
        return self.made


def parameters_of(optimizer: torch.optim.Optimizer) -> list[int]:
    """The identities of what an optimiser updates."""
    return [id(value) for group in optimizer.param_groups for value in group["params"]]


class OurSteps(L.Callback):
    """Times the training loop, batches and all, and keeps the first gradient where that is wanted."""

    def __init__(self, setting: Setting, *, compared: bool = False) -> None:
        self.setting, self.compared = setting, compared
        self.seconds = 0.0
        self.losses: list[float] = []
        self.gradient: np.ndarray[Any, Any] | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts the clock."""
        synchronise(self.setting.device)
        self._began = time.perf_counter()

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        """Keeps the gradient."""
        if self.compared and self.gradient is None:
            self.gradient = flat_gradient(pl_module.named_parameters())

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Reads the clock."""
        synchronise(self.setting.device)
        self.seconds = time.perf_counter() - self._began
        self.losses.append(float(outputs["loss"]))


class OurTraining(Side):
    """Ours: `instructrec fit` takes a step so, with Lightning and the collator at work."""

    def __init__(self, setting: Setting, kind: str, *, full: bool = False) -> None:
        super().__init__(setting)
        self.work = draw_windows(setting, WORKLOADS[kind])
        common: dict[str, Any] = {
            "backbone": setting.backbone,
            "optimizer": SteadyOptimizer(),
            "schedule": "constant",
            "warmup": 0.0,
            "gradient_clip": NO_CLIP,
        }
        self.model: InstructionRecommender = FullTuning(**common) if full else LoRATuning(r=RANK, alpha=ALPHA, **common)
        self.model.trainer = quiet_trainer(setting)
        self.model.configure_model()
        self.model.to(setting.device)
        if not full:
            fill_adapters(self.model.trained().items())
        self.config = {
            "windows_a_step": len(self.work.steps[0]),
            "examples_a_step": len(self.work.examples(0)),
            "row_tokens": self.work.data.loader.row_tokens,
            "tuning": "full" if full else f"LoRA r={RANK} on all linear layers",
            "precision": setting.lightning,
        }

    def loader(self, repetition: int) -> DataLoader[Any]:
        """The batches of one turn, made by the data module's own loader."""
        loader = self.work.data.train_dataloader()
        return DataLoader(loader.dataset, batch_sampler=[self.work.steps[repetition]], collate_fn=loader.collate_fn)

    def turn(self, repetition: int) -> Turn:
        """Takes the repetition's step."""
        steps = self._fit(self.loader(repetition), self.setting.lightning, compared=repetition == 0)
        values = {"loss": np.array(steps.losses)}
        if steps.gradient is not None:
            values["gradient"] = steps.gradient
        return Turn(steps.seconds, len(self.work.examples(repetition)), values)

    def exact(self) -> Values:
        """Loss and gradient of one window in float32, at the weights all sides began with."""
        self.model.float()
        fill_adapters(self.model.trained().items())
        steps = self._fit(self.loader(-1), "32-true", compared=True)
        if steps.gradient is None:
            raise RuntimeError("no step was taken")
        return {"loss": np.array(steps.losses), "gradient": steps.gradient}

    def _fit(self, loader: DataLoader[Any], precision: str, *, compared: bool) -> OurSteps:
        steps = OurSteps(self.setting, compared=compared)
        trainer = quiet_trainer(self.setting, precision, max_epochs=1, callbacks=[steps])
        trainer.fit(self.model, train_dataloaders=loader)
        return steps


def comparison(name: str, kind: str, title: str, trainer: float, sft: float) -> Comparison:
    """Training steps of one kind against both peers."""
    from benchmarks.perf.peers import SFTPeer, TrainerPeer

    return Comparison(
        name=name,
        title=title,
        unit="examples",
        sides={
            "trees": partial(OurTraining, kind=kind),
            "Trainer": partial(TrainerPeer, kind=kind),
            "SFTTrainer": partial(SFTPeer, kind=kind),
        },
        targets={"Trainer": trainer, "SFTTrainer": sft},
        rules=[
            ComparisonRule("loss", "loss", "largest", tolerance=0.1, exact_tolerance=1e-4),
            ComparisonRule("gradient", "gradient", "relative", tolerance=0.2, exact_tolerance=1e-4),
        ],
    )
