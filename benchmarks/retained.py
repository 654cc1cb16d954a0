"""What a tuned model has kept of its language: perplexity on general text, before and after.

The text (`texts/general.txt`) is in the public domain: Lincoln 1863, Austen 1813, Darwin 1859, Melville 1851 (his dashes
as hyphens). Each passage has been compared word by word with copies that others have published. Models have met these lines
in pretraining, so the number says nothing by itself; only its change says what tuning has cost.

# N tokens of a passage
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch

from recmodels.causal import CausalBackbone
from recmodels.prompt_tree import label_log_probabilities

TEXT = Path(__file__).with_name("texts") / "general.txt"
LONGEST = 256
"""Tokens of a passage that are read: every context has room for them, behind a prefix too."""


def passages() -> list[str]:
    """The passages of the text.

    Example:
        >>> len(passages()), passages()[3][:16]
        (4, 'Call me Ishmael.')
    """
    return TEXT.read_text(encoding="utf-8").strip().split("\n\n")


@torch.no_grad()
def perplexity(backbone: CausalBackbone, token_ids: Sequence[Sequence[int]]) -> float:
    """Exponential of the mean negative log-probability of a token, the first of each passage left out.

    The log-probabilities are those that rank items: each passage is a prompt tree without branches.

    Args:
        backbone: in evaluation mode.
        token_ids: passages of at least two tokens.

    Returns:
        The perplexity; infinity where it is larger than a float.
    """
    total, count = 0.0, 0
    for ids in token_ids:
        token = torch.tensor(ids[:LONGEST], device=backbone.model.device)
        size = len(token)
        depth, end = torch.arange(size, device=token.device), torch.full_like(token, size)
        hidden = backbone.hidden_states(token, end, depth, 1, (1, size))
        total -= float(label_log_probabilities(hidden, backbone.head, depth[:-1], token[1:]).double().sum())
        count += size - 1
    mean = total / count
    return math.exp(mean) if mean < 700 else math.inf
