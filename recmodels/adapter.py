"""Bottleneck adapters: small two-layer networks in every transformer block."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, cast

from torch import nn

from datamodules.sources import InputError
from recmodels.backbone import Backbone
from recmodels.bottleneck import Activation, Adapted
from recmodels.stacked import StackedTuning


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

    identity_at_start: ClassVar[bool] = True
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
                made = Adapted(
                    inner,
                    width,
                    bottleneck,
                    self.activation,
                    dropout=self.adapter_dropout,
                    scaling=self.scaling,
                    first=first,
                    level=self.level,
                )
                setattr(parent, name, made.to(next(inner.parameters()).device))
