"""Bottleneck adapters: small two-layer networks after attention and feed-forward blocks."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, cast

from torch import Tensor, nn

from datamodules.sources import InputError
from recmodels.backbone import Backbone
from recmodels.instruction import InstructionRecommender


class Adapted(nn.Module):
    """A block's output layer followed by a residual bottleneck: y + up(act(down(y))), the identity at the start.

    Args:
        layer: the frozen output layer.
        width: of its output.
        bottleneck: width in between.
        activation: in between.
        dropout: before `up`.
    """

    def __init__(self, layer: nn.Module, width: int, bottleneck: int, activation: nn.Module, dropout: float) -> None:
        super().__init__()
        self.layer, self.activation, self.dropout = layer, activation, nn.Dropout(dropout)
        self.down, self.up = nn.Linear(width, bottleneck), nn.Linear(bottleneck, width)
        nn.init.normal_(self.down.weight, std=0.02)
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    weight = property(lambda adapted: adapted.layer.weight)  # T5 asks for its type

    def forward(self, states: Tensor) -> Tensor:
        """Output of the layer with its bottleneck added."""
        output = self.layer(states)
        change = self.up(self.dropout(self.activation(self.down(output))))
        return cast(Tensor, output + change.to(output.dtype))


class AdapterTuning(InstructionRecommender):
    """Bottleneck adapters in every transformer block.

    Args:
        bottleneck: width of the adapters; null is 32, or what the budget gives.
        placement: `houlsby`, after attention and after the feed-forward (Houlsby et al. 2019, arXiv 1902.00751), or
            `pfeiffer`, after the feed-forward only (Pfeiffer et al. 2021, arXiv 2005.00247).
        activation: between the two layers.
        adapter_dropout: before the second layer.
        **kwargs: of `InstructionRecommender`.
    """

    identity_at_start: ClassVar[bool] = True
    size_field: ClassVar[str] = "bottleneck"

    def __init__(
        self,
        bottleneck: int | None = None,
        placement: Literal["houlsby", "pfeiffer"] = "houlsby",
        activation: Literal["relu", "gelu", "silu"] = "gelu",
        adapter_dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.bottleneck, self.placement = self.size(bottleneck, 32), placement
        self.activation, self.adapter_dropout = activation, adapter_dropout

    def tune(self, backbone: Backbone) -> None:
        """Puts adapters after the output layers of every block."""
        activations = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU}
        width = backbone.model.config.get_text_config().hidden_size
        blocks: tuple[Literal["mlp", "attention"], ...] = ("mlp", "attention")
        for layer in backbone.layers():
            for block in blocks if self.placement == "houlsby" else blocks[:1]:
                parent, name = backbone.output_layer(layer, block)
                inner = cast(nn.Module, getattr(parent, name))
                adapted = Adapted(inner, width, self.bottleneck, activations[self.activation](), self.adapter_dropout)
                setattr(parent, name, adapted.to(next(inner.parameters()).device))
