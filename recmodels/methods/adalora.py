"""AdaLoRA: low-rank updates whose ranks compete for a budget that shrinks while training goes on, through PEFT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from peft import AdaLoraConfig, AdaLoraModel
from torch import Tensor

from datamodules.contract.errors import InputError
from recmodels.backbones.base import Backbone
from recmodels.layers.reference import Reference
from recmodels.methods.base import InstructionRecommender
from recmodels.methods.peft_support import check_targets


class AdaLoRATuning(InstructionRecommender):
    """Adaptive budget allocation (Zhang et al. 2023, arXiv 2303.10512): W x + (alpha / r) P E Q x, E zero at the start.

    Args:
        init_r: rank of every update at the start; null is 12, or what the budget gives, which is held at the start.
        target_r: mean rank that is left at the end; null is two thirds of the first.
        alpha: scale of the update is alpha / init_r.
        lora_dropout: dropout before Q.
        targets: names of the linear layers to adapt, by their last part; null takes every linear layer but the head.
        warm: share of the steps before ranks are taken away.
        settle: share of the steps at the end over which they stay as they are.
        orthogonal: weight of the penalty that keeps P and Q orthogonal.
        **kwargs: of `InstructionRecommender`.
    """

    identity_at_start = True
    size_field: ClassVar[str] = "init_r"

    def __init__(
        self,
        init_r: int | None = None,
        target_r: int | None = None,
        alpha: int = 16,
        lora_dropout: float = 0.0,
        targets: Sequence[str] | None = None,
        warm: float = 0.1,
        settle: float = 0.3,
        orthogonal: float = 0.5,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.init_r, self.target_r = self.size(init_r, 12), target_r
        if target_r is not None:
            check_target_rank(target_r, self.init_r, self.budget)
        if min(warm, settle) < 0 or warm + settle >= 1:
            raise InputError(f"model.warm and model.settle are {warm} and {settle}; together they must be below 1")
        self.alpha, self.lora_dropout, self.targets = alpha, lora_dropout, targets
        self.warm, self.settle, self.orthogonal = warm, settle, orthogonal

    def tune(self, backbone: Backbone) -> None:
        """Adds P, E and Q beside the targets."""
        config = AdaLoraConfig(
            init_r=self.init_r,
            target_r=self.target_r or max(1, round(self.init_r * 2 / 3)),
            lora_alpha=self.alpha,
            lora_dropout=self.lora_dropout,
            target_modules=list(self.targets or {name.rsplit(".", 1)[-1] for name in backbone.linear_layers()}),
            total_step=1,  # until the trainer knows
            orth_reg_weight=self.orthogonal,
        )
        check_targets(config, backbone, "model.targets", "model.target_r")
        self._tuner = Reference(AdaLoraModel(backbone.body, config, "default"))

    def on_train_start(self) -> None:
        """Lays the budget's schedule over the steps of this training."""
        steps = int(self.trainer.estimated_stepping_batches)
        config = self._tuner.module.peft_config["default"]
        config.total_step, config.tinit = steps, int(self.warm * steps)
        config.tfinal = min(int(self.settle * steps), steps - config.tinit - 1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Returns the objective's loss, and the penalty on P and Q."""
        loss = super().training_step(batch, batch_idx)
        return loss + self.orthogonal * mean_distance(self.trained())

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Takes the step, then takes ranks away while its gradients are there."""
        super().optimizer_step(*args, **kwargs)
        if all(value.grad is not None for value in self.trained().values()):
            self._tuner.module.update_and_allocate(self.global_step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps what the next allocation depends on, too."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["instructrec"]["allocation"] = allocation_of(self._tuner.module)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Goes on with the importances so far."""
        super().on_load_checkpoint(checkpoint)
        restore_allocation(self._tuner.module, checkpoint["instructrec"]["allocation"])


def check_target_rank(target_r: int, init_r: int, budget: float | None) -> None:
    """Raises `InputError` for a last rank that a budget sets, too, or that the first one does not allow."""
    if budget is not None:
        raise InputError("model.budget sets both ranks; leave model.target_r out")
    if not 1 <= target_r <= init_r:
        raise InputError(f"model.target_r is {target_r}, must be 1 to model.init_r, {init_r}")


IMPORTANCES = ("ipt", "exp_avg_ipt", "exp_avg_unc")
"""What PEFT's allocator keeps of every step, by attribute."""


def allocation_of(tuner: AdaLoraModel) -> dict[str, Any]:
    """Returns the importances so far, and the ranks that they left."""
    importances = {name: getattr(tuner.rankallocator, name) for name in IMPORTANCES}
    return importances | {"rank_pattern": dict(tuner.peft_config["default"].rank_pattern or {})}


def restore_allocation(tuner: AdaLoraModel, allocation: Mapping[str, Any]) -> None:
    """Puts them back."""
    tuner.peft_config["default"].rank_pattern = allocation["rank_pattern"]
    for name in IMPORTANCES:
        setattr(tuner.rankallocator, name, allocation[name])


def mean_distance(parameters: Mapping[str, Tensor]) -> Tensor:
    """Returns how far each P and Q is from orthogonal on average: the Frobenius norm of its Gram matrix less identity."""
    parts = [(name, value) for name, value in parameters.items() if "lora_A" in name or "lora_B" in name]
    grams = [value @ value.T if "lora_A" in name else value.T @ value for name, value in parts]
    return torch.stack([torch.linalg.norm(gram - torch.eye(len(gram), device=gram.device)) for gram in grams]).mean()
