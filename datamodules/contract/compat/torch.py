"""What this project uses of torch beyond its public interface (2.10 to 2.13)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def largest_magnitudes(tensors: Sequence[Tensor]) -> Tensor:
    """The largest magnitude of each tensor, which NaN and infinity survive: `torch._foreach_norm`, all in one pass.

    Example:
        >>> largest_magnitudes([torch.tensor([1.0, -3.0]), torch.tensor([2.0])]).tolist()
        [3.0, 2.0]
    """
    return torch.stack(torch._foreach_norm(list(tensors), float("inf")))


def allow_recompiling(times: int, in_all: int) -> None:
    """Raises the limits on compiling a function again: `torch._dynamo.config`, which has no public form."""
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, times)
    limits.accumulated_recompile_limit = max(limits.accumulated_recompile_limit, in_all)


def has_bfloat16_units() -> bool:
    """Whether this processor multiplies bfloat16 in hardware: two questions of `torch.cpu` that only it asks itself."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
