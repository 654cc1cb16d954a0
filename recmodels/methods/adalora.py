"""AdaLoRA: low-rank updates whose ranks compete for a budget that shrinks while training goes on, through PEFT."""

from __future__ import annotations

from collections.abc import Sequence
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
        if target_r is not None and self.budget is not None:
            raise InputError("model.budget sets both ranks; leave model.target_r out")
        if target_r is not None and not 1 <= target_r <= self.init_r:
            raise InputError(f"model.target_r is {target_r}, must be 1 to model.init_r, {self.init_r}")
        if min(warm, settle) < 0 or warm + settle >= 1:
            raise InputError(f"model.warm and model.settle are {warm} and {settle}; together they must be below 1")
        self.alpha, self.lora_dropout = alpha, lora_dropout
        self.targets, self.warm, self.settle, self.orthogonal = targets, warm, settle, orthogonal

    def tune(self, backbone: Backbone) -> None:
        """Adds P, E and Q beside the targets."""
        names = sorted({name.rsplit(".", 1)[-1] for name in backbone.linear_layers()})
        config = AdaLoraConfig(
            init_r=self.init_r,
            target_r=self.target_r or max(1, round(self.init_r * 2 / 3)),
            lora_alpha=self.alpha,
            lora_dropout=self.lora_dropout,
            target_modules=list(self.targets or names),
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
        """The objective's loss, and the penalty on P and Q."""
        loss = super().training_step(batch, batch_idx)
        parts = [(n, p) for n, p in self.trained().items() if "lora_A" in n or "lora_B" in n]
        products = [p @ p.T if "lora_A" in n else p.T @ p for n, p in parts]
        apart = torch.stack([torch.linalg.norm(each - torch.eye(len(each), device=each.device)) for each in products])
        return loss + self.orthogonal * apart.mean()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Takes the step, then takes ranks away while its gradients are there."""
        super().optimizer_step(*args, **kwargs)
        if all(value.grad is not None for value in self.trained().values()):
            self._tuner.module.update_and_allocate(self.global_step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps what the next allocation depends on, too."""
        super().on_save_checkpoint(checkpoint)
        allocator = self._tuner.module.rankallocator
        checkpoint["instructrec"]["allocation"] = {
            "ipt": allocator.ipt,
            "exp_avg_ipt": allocator.exp_avg_ipt,
            "exp_avg_unc": allocator.exp_avg_unc,
            "rank_pattern": dict(self._tuner.module.peft_config["default"].rank_pattern or {}),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Goes on with the importances so far."""
        super().on_load_checkpoint(checkpoint)
        kept = dict(checkpoint["instructrec"]["allocation"])
        self._tuner.module.peft_config["default"].rank_pattern = kept.pop("rank_pattern")
        for name, value in kept.items():
            setattr(self._tuner.module.rankallocator, name, value)
