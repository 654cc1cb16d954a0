"""LoRA: low-rank updates of linear layers, through PEFT."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from peft import LoraConfig

from datamodules.contract.errors import InputError
from recmodels.backbones.base import Backbone
from recmodels.methods.base import InstructionRecommender
from recmodels.methods.peft_support import check_targets, inject


class LoRATuning(InstructionRecommender):
    """Low-rank adaptation (Hu et al. 2021, arXiv 2106.09685): W x + (alpha / r) B A x, with B zero at the start.

    Args:
        r: rank of the update; null is 8, or what the budget gives.
        alpha: scale of the update is alpha / r.
        lora_dropout: dropout before A.
        targets: names of the linear layers to adapt, by their last part; null takes every linear layer but the head.
        b_rate: learning rate of B as a multiple of A's; 16 is LoRA+ (Hayou et al. 2024, arXiv 2402.12354).
        **kwargs: of `InstructionRecommender`.
    """

    identity_at_start = True
    size_field: ClassVar[str] = "r"

    def __init__(
        self,
        r: int | None = None,
        alpha: float = 16,
        lora_dropout: float = 0.0,
        targets: Sequence[str] | None = None,
        b_rate: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not b_rate > 0:
            raise InputError(f"model.b_rate is {b_rate}, must be above 0")
        self.b_rate = b_rate
        self.r, self.alpha, self.lora_dropout, self.targets = self.size(r, 8), alpha, lora_dropout, targets

    def tune(self, backbone: Backbone) -> None:
        """Adds A and B beside the targets.

        Raises:
            InputError: no layer has a target's name, or the rank exceeds a layer's width.
        """
        linear = backbone.linear_layers()
        targets = list(self.targets or sorted({name.rsplit(".", 1)[-1] for name in linear}))
        config = LoraConfig(
            r=self.r,
            lora_alpha=self.alpha,
            lora_dropout=self.lora_dropout,
            target_modules=targets,
            fan_in_fan_out=any(type(layer).__name__ == "Conv1D" for layer in linear.values()),  # GPT-2's [in, out]
        )
        check_targets(config, backbone, "model.targets", "model.r")
        self._tuner = inject(backbone, config)

    def rates(self) -> dict[str, float]:
        """Returns B's own rate."""
        return super().rates() | {name: self.b_rate for name in self.trained() if ".lora_B." in name}
