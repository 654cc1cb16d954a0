"""Bottleneck adapters: small two-layer networks in every transformer block."""

from __future__ import annotations

import os
from typing import Any, ClassVar, Literal, cast

import torch
from torch import nn

from datamodules.contract.errors import InputError
from recmodels.backbones.base import Backbone
from recmodels.base import OWN_CONFIG
from recmodels.layers.bottleneck import Activation, Adapted
from recmodels.methods.adapter_stack import KEY, Stack, levels_below, levels_of, plain_level, put_stack, read_stack
from recmodels.methods.base import InstructionRecommender


class StackedTuning(InstructionRecommender):
    """A method whose checkpoints hold bottleneck adapters, its own and frozen ones below.

    Args:
        stack_on: an earlier AdapterTuning run of the same backbone: its folder, its checkpoint, or the folder that
            `export` made. Its adapters are put in frozen, with their own settings and no dropout, and the new ones stand
            behind them (MAD-X, Pfeiffer et al. 2020, arXiv 2005.00052). The checkpoint keeps both: once it is written,
            the earlier run is not needed. Null stands on the backbone.
        **kwargs: of `InstructionRecommender`.
    """

    def __init__(self, stack_on: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.stack_on = stack_on
        self._stack: Stack | None = None
        if stack_on is not None and os.path.exists(os.path.expanduser(stack_on)):
            self._stack = read_stack(stack_on, self.backbone_name)  # one that is gone may come with a checkpoint

    @property
    def level(self) -> int:
        """How many levels of adapters stand below the new ones."""
        return len(self._stack.levels) if self._stack is not None else 0

    def configure_model(self) -> None:
        """Reads what the new adapters stand on, and then loads the backbone.

        Raises:
            InputError: there is nothing to stand on.
        """
        if self.stack_on is not None and self._stack is None:
            self._stack = read_stack(self.stack_on, self.backbone_name)
        super().configure_model()

    def prepare_backbone(self, backbone: Backbone) -> None:
        """Puts the earlier adapters in.

        Raises:
            InputError: they do not belong to these weights.
        """
        if self._stack is not None:
            frozen = put_stack(backbone, self._stack, self.base_checksum, str(self.stack_on))
            self.findings |= {"stack_levels": self.level, "stack_parameters": frozen}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps the form of what was trained, and all that it stands on."""
        super().on_save_checkpoint(checkpoint)
        *below, top = levels_of(self.backbone)
        checkpoint["instructrec"] |= {"backbone": self.backbone_name, "adapters": top.settings()}
        if below:
            checkpoint[KEY] = [plain_level(level) for level in below]

    @torch.no_grad()
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes what the checkpoint stands on from the checkpoint itself.

        Raises:
            InputError: the checkpoint does not fit, or stands on others.
        """
        levels = levels_below(checkpoint)
        if self.network is None and self.stack_on is not None and levels:
            origin = checkpoint.get("instructrec") or {}
            self._stack = Stack(levels, self.backbone_name, str(origin.get("base_checksum")))
        super().on_load_checkpoint(checkpoint)
        below = levels_of(self.backbone)[:-1]
        if [level.form() for level in below] != [level.form() for level in levels]:
            raise InputError(
                f"the checkpoint is stacked on {len(levels)} levels of adapters, the model on {len(below)} or on"
                f" others: {OWN_CONFIG}"
            )
        for level, saved in zip(below, levels, strict=True):
            for name, value in level.state.items():
                value.copy_(saved.state[name])


class AdapterTuning(StackedTuning):
    """Bottleneck adapters in every transformer block, on the backbone or on those of an earlier run.

    Args:
        bottleneck: width of the adapters; null is 32, or what the budget or the reduction factor gives.
        placement: `houlsby`, after attention and after the feed-forward (Houlsby et al. 2019, arXiv 1902.00751);
            `pfeiffer`, after the feed-forward only (Pfeiffer et al. 2021, arXiv 2005.00247); or `parallel`, beside the
            feed-forward (He et al. 2022, arXiv 2110.04366, whose scaling is 4).
        reduction_factor: the backbone's width over the bottleneck, in place of `bottleneck`.
        activation: between the two layers.
        scaling: factor on what an adapter adds; `learned` trains one for each, from 1.
        adapter_dropout: before the second layer.
        **kwargs: of `StackedTuning`.
    """

    identity_at_start = True
    size_field: ClassVar[str] = "bottleneck"

    def __init__(
        self,
        bottleneck: int | None = None,
        placement: Literal["houlsby", "pfeiffer", "parallel"] = "houlsby",
        reduction_factor: int | None = None,
        activation: Activation = "gelu",
        scaling: float | Literal["learned"] = 1.0,
        adapter_dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if reduction_factor is not None and (bottleneck is not None or self.budget is not None):
            raise InputError("model.reduction_factor and model.bottleneck or model.budget both set the size; keep one")
        if not 0 <= adapter_dropout < 1:
            raise InputError(f"model.adapter_dropout is {adapter_dropout}, must be 0 to below 1")
        self.bottleneck, self.reduction_factor = self.size(bottleneck, 32), reduction_factor
        self.placement, self.activation, self.adapter_dropout = placement, activation, adapter_dropout
        self.scaling = None if scaling == "learned" else float(scaling)

    def tune(self, backbone: Backbone) -> None:
        """Puts adapters behind the output layers of every block, or beside its feed-forward.

        Raises:
            InputError: the reduction factor is out of range, or the architecture names its layers otherwise.
        """
        width, bottleneck = backbone.width, self.bottleneck
        if self.reduction_factor is not None:
            if not 1 <= self.reduction_factor <= width:
                raise InputError(f"model.reduction_factor is {self.reduction_factor}, must be 1 to the width, {width}")
            bottleneck = width // self.reduction_factor
        blocks: tuple[Literal["mlp", "attention"], ...] = ("mlp", "attention")
        for layer in backbone.layers():
            for block in blocks if self.placement == "houlsby" else blocks[:1]:
                parent, name = backbone.output_layer(layer, block)
                inner = cast(nn.Module, getattr(parent, name))
                first = backbone.input_layer(layer) if self.placement == "parallel" else None
                adapted = Adapted(
                    inner,
                    width,
                    bottleneck,
                    self.activation,
                    dropout=self.adapter_dropout,
                    scaling=self.scaling,
                    first=first,
                    level=self.level,
                )
                setattr(parent, name, adapted.to(next(inner.parameters()).device))
