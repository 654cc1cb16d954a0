"""Bottleneck layers beside or behind a frozen linear layer.

# D hidden, K bottleneck
"""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

Activation = Literal["relu", "gelu", "silu", "tanh"]
ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}


class Adapted(nn.Module):
    """A block's output layer with a bottleneck: y + s * up(dropout(act(down(x)))), y alone at the start.

    x is y, or what the feed-forward's first layer reads. That is seen by a hook on this layer, which runs just before
    in the same block, so under gradient checkpointing both run again together.

    Args:
        layer: the frozen output layer.
        width: D, of what the bottleneck reads and makes.
        bottleneck: K, in between.
        activation: in between.
        dropout: before `up`.
        scaling: s; None trains it, from 1.
        first: the feed-forward's first layer, whose input is read; None reads the output layer's own output.
        level: how many adapters of earlier runs may stand below: `layer` is then such an adapter itself.

    Example:
        >>> Adapted(nn.Identity(), 4, 2, "relu", dropout=0.0, scaling=1.0)(torch.ones(1, 4)).tolist()
        [[1.0, 1.0, 1.0, 1.0]]
    """

    def __init__(
        self,
        layer: nn.Module,
        width: int,
        bottleneck: int,
        activation: Activation,
        *,
        dropout: float,
        scaling: float | None,
        first: nn.Module | None = None,
        level: int = 0,
    ) -> None:
        super().__init__()
        self.level = level
        self.layer, self.activation, self.dropout = layer, ACTIVATIONS[activation](), nn.Dropout(dropout)
        self.down, self.up = nn.Linear(width, bottleneck), nn.Linear(bottleneck, width)
        self.scaling = nn.Parameter(torch.ones(1)) if scaling is None else scaling
        nn.init.normal_(self.down.weight, std=0.02)
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)
        self._read: Tensor | None = None
        self.beside = first is not None
        if first is not None:
            first.register_forward_pre_hook(self._remember)

    @property
    def weight(self) -> Any:
        """The layer's weight: T5 asks for its type."""
        return self.layer.weight

    def parts(self) -> dict[str, Tensor]:
        """Its own tensors by name, without those of the layer."""
        return {name: value for name, value in self.named_parameters() if not name.startswith("layer.")}

    @torch.no_grad()
    def load_parts(self, parts: dict[str, Tensor]) -> None:
        """Takes tensors, as `parts` names them."""
        for name, value in self.parts().items():
            value.copy_(parts[name])

    def _remember(self, _: nn.Module, args: tuple[Tensor, ...]) -> None:
        self._read = args[0]

    def forward(self, states: Tensor) -> Tensor:
        """Output of the layer with its bottleneck added."""
        output = self.layer(states)
        read, self._read = (self._read if self.beside else output), None
        change = self.up(self.dropout(self.activation(self.down(read)))) * self.scaling
        return cast(Tensor, output + change.to(output.dtype))
