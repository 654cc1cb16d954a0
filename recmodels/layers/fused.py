"""Llama's normalisation, and linear layers with LoRA's update, in fewer passes over the activations.

Autograd goes over them once for every product in the formula, forwards and backwards; written as one function, the
gradient takes two fifths of the time (float32, 1,872 tokens of 576, two cores).

# N tokens, D hidden, I inputs, O outputs, r rank
"""

from __future__ import annotations

from typing import Any, cast

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """Scales each token's state to a root mean square of one, then by a weight (Zhang and Sennrich, 2019).

    Args:
        weight: `[D]`.
        eps: added to the mean square.

    Example:
        >>> RMSNorm(nn.Parameter(torch.ones(2)), eps=0.0)(torch.tensor([[1.0, 7.0]])).tolist()
        [[0.20000000298023224, 1.399999976158142]]
    """

    def __init__(self, weight: nn.Parameter, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = weight, eps

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Returns states `[..., D]` in the type they came in; computed in float32 but for the weight's product."""
        if not has_fused_norm(hidden_states, self.weight):
            return cast(Tensor, _Normalised.apply(hidden_states, self.weight, self.eps))
        with torch.autocast(hidden_states.device.type, enabled=False):
            return nn.functional.rms_norm(hidden_states, self.weight.shape, self.weight, self.eps)

    def extra_repr(self) -> str:
        """Size and epsilon, as transformers tells them."""
        return f"{tuple(self.weight.shape)}, eps={self.eps}"


def has_fused_norm(states: Tensor, weight: Tensor) -> bool:
    """Whether torch's own normalisation is taken: on a GPU it is one kernel; it wants states of the weight's type."""
    return states.is_cuda and states.dtype == weight.dtype


class _Normalised(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.float()
        scale = _dot(wide, wide).div_(x.shape[-1]).add_(eps).rsqrt_().unsqueeze(-1)
        ctx.save_for_backward(x, weight, scale)
        normed = (wide * scale).to(x.dtype)
        return normed.mul_(weight) if weight.dtype == normed.dtype else normed * weight

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight, scale = ctx.saved_tensors
        gradient, wide, to_x, to_weight = gradients[0], x.float(), None, None
        if ctx.needs_input_grad[1]:
            to_weight = (gradient * (wide * scale).to(x.dtype)).flatten(0, -2).sum(0).to(weight.dtype)
        if ctx.needs_input_grad[0]:
            inner = (gradient * weight).float()
            along = _dot(inner, wide).unsqueeze(-1).mul_(scale * scale / x.shape[-1])
            to_x = inner.addcmul_(wide, along, value=-1).mul_(scale).to(x.dtype)
        return to_x, to_weight, None


def _dot(left: Tensor, right: Tensor) -> Tensor:
    """Returns products of vectors `[..., D]` in the type they have, which autocast would narrow."""
    with torch.autocast(left.device.type, enabled=False):
        return cast(Tensor, torch.linalg.vecdot(left, right))


@torch.no_grad()
def replace_norms(model: nn.Module) -> None:
    """Puts `RMSNorm` in the place of a model's own layers that compute the same; their weights stay where they are.

    Layers of another formula (Gemma's adds one to the weight) or of a model without values are left as they are.
    """
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            weight, eps = getattr(layer, "weight", None), getattr(layer, "variance_epsilon", None)
            if not isinstance(weight, nn.Parameter) or weight.is_meta or not isinstance(eps, float):
                continue
            norm, states = RMSNorm(weight, eps), torch.linspace(-2, 3, 4 * len(weight)).view(4, -1).to(weight)
            if torch.allclose(norm(states).float(), layer(states).float(), rtol=1e-2 if weight.itemsize < 4 else 1e-5):
                setattr(parent, name, norm)


class LowRankLinear(Linear):
    """PEFT's LoRA layer, computed with fewer passes over the activations.

    PEFT scales and adds the update at the layer's full width; here the scale goes into the r columns and the sum into
    the matrix product, forwards and backwards. Whatever is not plain LoRA on a frozen layer goes PEFT's own way.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Returns the layer's output with its update."""
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
            output = nn.functional.linear(flat, weight, bias).addmm_(middle, b.t())
        ctx.save_for_backward(flat, weight, a, b, middle)
        ctx.scale, ctx.shape, ctx.dtypes = scale, x.shape, (inner.dtype, outer.dtype)
        return output.view(*x.shape[:-1], -1)

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
