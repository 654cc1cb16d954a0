"""A linear layer with a low-rank update in one pass, for the frozen layers that LoRA adapts.

# N tokens, I inputs, O outputs, r rank
"""

from __future__ import annotations

from typing import Any, cast

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn


class LowRankLinear(Linear):
    """PEFT's LoRA layer, computed with fewer passes over the activations.

    PEFT scales and adds the update at the layer's full width; here the scale goes into the r columns and the sum into
    the matrix product, forwards and backwards. Whatever is not plain LoRA on a frozen layer goes PEFT's own way.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer's output with its update."""
        base = self.get_base_layer()
        if self._is_plain(base) and not args and not kwargs and x.dtype == base.weight.dtype:
            name = self.active_adapters[0]
            inner, outer = self.lora_A[name].weight, self.lora_B[name].weight
            return cast(Tensor, _LowRank.apply(x, base.weight, base.bias, inner, outer, self.scaling[name]))
        return cast(Tensor, super().forward(x, *args, **kwargs))

    def _is_plain(self, base: Any) -> bool:
        if self.disable_adapters or self.merged or len(self.active_adapters) != 1 or type(base) is not nn.Linear:
            return False
        name = self.active_adapters[0]
        special = self.lora_variant.get(name) or self.lora_bias.get(name) or base.weight.requires_grad
        dropout = self.training and not isinstance(self.lora_dropout[name], nn.Identity)
        return name in self.lora_A and not special and not dropout


class _LowRank(torch.autograd.Function):
    """x W' + b + s (x A') B'; the layer W [O, I], b is frozen, A [r, I] and B [O, r] train."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, inner: Tensor, outer: Tensor, scale: float
    ) -> Tensor:
        flat, a, b = x.reshape(-1, x.shape[-1]), inner.to(x.dtype), outer.to(x.dtype)
        with torch.autocast(x.device.type, enabled=False):
            middle = (flat @ a.t()).mul_(scale)  # [N, r]
            made = nn.functional.linear(flat, weight, bias).addmm_(middle, b.t())
        ctx.save_for_backward(flat, weight, a, b, middle)
        ctx.scale, ctx.shape, ctx.dtypes = scale, x.shape, (inner.dtype, outer.dtype)
        return made.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        flat, weight, a, b, middle = ctx.saved_tensors
        gradient = gradients[0].reshape(-1, weight.shape[0])
        with torch.autocast(flat.device.type, enabled=False):
            between = (gradient @ b).mul_(ctx.scale)  # [N, r]
            to_outer = (middle.t() @ gradient).t().to(ctx.dtypes[1])  # a CPU is faster at few rows than at few columns
            to_inner = (between.t() @ flat).to(ctx.dtypes[0])
            to_x = None
            if ctx.needs_input_grad[0]:
                to_x = (gradient @ weight).addmm_(between, a).view(ctx.shape)
        return to_x, None, None, to_inner, to_outer, None
