"""The engine: the attention rule of forests of tokens, and log-probabilities only where there is a label.

A row holds trees in depth-first preorder. With `end[j]` the index after the last descendant of token j, token i may
attend to token j exactly when `j <= i < end[j]`, at position `depth[i]`. A plain causal sequence is the case
`end[j] = N`; packed sequences, shared prompts and shared histories are others. The result is exact: every branch gets
the score it would get alone.

# R rows, N tokens a row, D hidden, L labels, B branches, V vocabulary
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def tree_mask(end: Tensor, depth: Tensor | None = None, window: int | None = None) -> Tensor:
    """Returns the attention rule as a boolean mask.

    Args:
        end: `[R, N]` index after the last descendant of each token.
        depth: `[R, N]` distance from the root; needed for a window.
        window: tokens that a layer looks back over, itself included; None looks back to the root.

    Returns:
        `[R, 1, N, N]`, true where token i (row) may attend to token j (column).

    Example:
        >>> tree_mask(torch.tensor([[3, 2, 3]]))[0, 0].int().tolist()
        [[1, 0, 0], [1, 1, 0], [1, 0, 1]]
    """
    index = torch.arange(end.shape[1], device=end.device)
    query, key = index[:, None], index[None, :]
    seen = (key <= query) & (query < end[:, None, :])
    if window is not None and depth is not None:
        seen &= depth[:, :, None] - depth[:, None, :] < window
    return seen.unsqueeze(1)


@dataclass(frozen=True)
class Head:
    """A language model's head: from hidden states to logits.

    Attributes:
        project: the linear layer.
        scale: of the states before it.
        bias: added behind it, where a model keeps one apart.
        cap: logits are squeezed to this range by a hyperbolic tangent; None leaves them.
    """

    project: Any
    scale: float = 1.0
    bias: Tensor | None = None
    cap: float | None = None

    def __call__(self, states: Tensor) -> Tensor:
        """Returns logits `[*, V]` of states `[*, D]`, in the type that the product has."""
        return self._finished(self.project(states if self.scale == 1 else states * self.scale), slice(None))

    def picked(self, states: Tensor, token: Tensor) -> Tensor | None:
        """Returns one logit `[L]` for each of `[L, D]` states as float32 products; None where a method adds to the layer.

        A product in bfloat16 is rounded to steps of .06 at logits of 8 to 16, by which titles would be ranked.
        """
        if type(self.project) is not nn.Linear:
            return None
        with torch.autocast(states.device.type, enabled=False):
            parts = [
                (some.float() * self.scale * self.project.weight[ids].float()).sum(-1)
                for some, ids in zip(states.split(4096), token.split(4096), strict=True)
            ]
            own = self.project.bias
            return self._finished(torch.cat(parts) + (0 if own is None else own[token].float()), token)

    def _finished(self, logits: Tensor, token: Tensor | slice) -> Tensor:
        if self.bias is not None:
            logits = logits + self.bias.flatten()[token]
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)


def label_log_probabilities(
    hidden: Tensor,
    head: Callable[[Tensor], Tensor],
    position: Tensor,
    token: Tensor,
    chunk: int | None = None,
    smoothing: float = 0.0,
) -> Tensor:
    """Returns the log-probabilities of labels, computing logits once per predicting token and nowhere else.

    All candidates of a case predict their first token from the same position, so positions are fewer than labels.
    Logits exist for one chunk at a time; under autograd each chunk is recomputed in the backward pass.

    Args:
        hidden: `[R, N, D]` last hidden states.
        head: the language-model head, `[*, D]` to `[*, V]`.
        position: `[L]` where in the flattened `[R * N]` rows the label is predicted.
        token: `[L]` the label.
        chunk: predicting positions whose logits are held at once; None holds 1,024 under autograd, which more would
            recompute, and else 128.
        smoothing: share of a label that is spread over the whole vocabulary (doi:10.1109/CVPR.2016.308).

    Returns:
        `[L]` log-probabilities in float32.

    Example:
        >>> hidden = torch.eye(3).unsqueeze(0)
        >>> label_log_probabilities(hidden, lambda h: h * 9, torch.tensor([1]), torch.tensor([1])).exp().round().item()
        1.0
    """
    chunk = chunk or (1024 if torch.is_grad_enabled() else 128)
    unique, inverse = torch.unique(position, return_inverse=True)
    states = hidden.reshape(-1, hidden.shape[-1]).index_select(0, unique)
    if torch.is_grad_enabled():
        # A CPU's product of very few rows with the head sums the vocabulary in one go: its gradient is off by 2e-4
        # (float32, three rows, 49,152 words), with rows of zeros beside them by 1e-5 as with many.
        states = nn.functional.pad(states, (0, 0, 0, -len(states) % 16))
    order = torch.argsort(inverse, stable=True)
    sorted_inverse, sorted_token = inverse[order], token[order]
    parts = []
    for begin in range(0, len(unique), chunk):
        low = int(torch.searchsorted(sorted_inverse, begin))
        high = int(torch.searchsorted(sorted_inverse, begin + chunk))
        arguments = (
            states[begin : begin + chunk],
            sorted_inverse[low:high] - begin,
            sorted_token[low:high],
        )
        if torch.is_grad_enabled() and len(unique) > chunk:
            parts.append(checkpoint(_gathered, head, *arguments, smoothing, use_reentrant=False))
        else:
            parts.append(_gathered(head, *arguments, smoothing))
    return torch.cat(parts)[torch.argsort(order)]


def _gathered(head: Callable[[Tensor], Tensor], states: Tensor, row: Tensor, token: Tensor, smoothing: float) -> Tensor:
    logits = head(states)
    if torch.is_grad_enabled():
        return cast(Tensor, _PickedLogProbability.apply(logits, row, token, smoothing))
    log_probability, normaliser = _picked(logits.float(), row, token, smoothing)
    if smoothing:
        return log_probability
    rounded = states.dtype != torch.float32 or torch.is_autocast_enabled(states.device.type)
    exact = head.picked(states[row], token) if rounded and isinstance(head, Head) else None
    return log_probability if exact is None else exact - normaliser[row, 0]


def _picked(wide: Tensor, row: Tensor, token: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities, and the normaliser `[chunk, 1]` of float32 logits `[chunk, V]`, which are used up."""
    picked = wide[row, token]
    if smoothing:
        picked = torch.lerp(picked, wide.mean(-1)[row], smoothing)
    top = wide.amax(-1, keepdim=True)
    normaliser = top + wide.sub_(top).exp_().sum(-1, keepdim=True).log()
    return picked - normaliser[row, 0], normaliser


class _PickedLogProbability(torch.autograd.Function):
    """Log-softmax of logits `[chunk, V]` in float32, at (row, token) only.

    Keeps the logits as they came, half the size of their float32 form, and goes over them as seldom as can be.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, row: Tensor, token: Tensor, smoothing: float) -> Tensor:
        wide = logits.float() if logits.dtype != torch.float32 else logits.clone()
        log_probability, normaliser = _picked(wide, row, token, smoothing)
        ctx.save_for_backward(logits, normaliser, row, token)
        ctx.smoothing = smoothing
        return log_probability

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        logits, normaliser, row, token = ctx.saved_tensors
        total = normaliser.new_zeros(len(logits)).index_add_(0, row, gradients[0])
        gradient = logits.float().sub(normaliser).exp_().mul_(-total[:, None])
        if ctx.smoothing:
            gradient += total[:, None] * (ctx.smoothing / logits.shape[-1])
        gradient.index_put_((row, token), gradients[0] * (1 - ctx.smoothing), accumulate=True)
        return gradient.to(logits.dtype), None, None, None


def branch_scores(log_probability: Tensor, branch: Tensor, branches: int, *, mean: bool) -> Tensor:
    """Returns the log-likelihood `[B]` of each branch, or its mean a label, from `[L]` labels and the branch of each.

    Example:
        >>> branch_scores(torch.tensor([-1.0, -3.0, -5.0]), torch.tensor([0, 0, 1]), 2, mean=True).tolist()
        [-2.0, -5.0]
    """
    total = log_probability.new_zeros(branches).index_add(0, branch, log_probability)
    return total / torch.bincount(branch, minlength=branches).clamp(min=1) if mean else total


def log_sums(value: Tensor, group: Tensor, groups: int) -> Tensor:
    """Returns the logarithm of the sum of exponentials `[*, G]` of each group's values `[*, C]`, groups `[C]` from 0.

    Example:
        >>> log_sums(torch.tensor([1.0, 2.0, 3.0]).log(), torch.tensor([0, 1, 0]), 2).exp().tolist()
        [4.0, 2.0]
    """
    index, fixed = group.expand_as(value), value.detach()
    top = fixed.new_full((*value.shape[:-1], groups), -torch.inf).scatter_reduce(-1, index, fixed, "amax")
    total = torch.zeros_like(top).scatter_add(-1, index, (value - top.gather(-1, index)).exp())
    return top + total.log()
