"""What the history adds to the answer, beside the likelihood."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from datamodules.contract.errors import InputError
from datamodules.contract.objectives import ObjectiveNeeds
from recmodels.objectives.base import BranchScores, Objective
from recmodels.objectives.likelihood import answer_loss


class CausalEffect(Objective):
    """Counterfactual fine-tuning (CFT, Zhang et al. 2024, arXiv 2410.22809).

    Likelihood, and the same of the history's effect: the softmax of the logits with the history less those without it.
    What every user would be offered, such as the popular, is subtracted, so that only what the history adds is learnt.

    Args:
        weight: of the effect's likelihood beside the plain one.
        last_weight: of an answer's last token beside 1 for its first, falling evenly; later tokens hang less on the
            history.

    Example:
        >>> from recmodels.objectives.base import TokenScores
        >>> log, case = torch.tensor([-2.0, -4.0]), torch.tensor([0])
        >>> tokens = TokenScores(torch.tensor([0, 0]), log, effect=2 * log)
        >>> scores = BranchScores(log.sum()[None], torch.tensor([2]), log[:1], torch.ones(1), case, tokens=tokens)
        >>> round(CausalEffect(weight=0.5, last_weight=0.0)(scores).item(), 4)
        4.0
    """

    needs: ClassVar[ObjectiveNeeds] = ObjectiveNeeds("causal_effect")
    needs_effects = True

    def __init__(self, weight: float = 0.1, last_weight: float = 0.25) -> None:
        for name, value in {"weight": weight, "last_weight": last_weight}.items():
            if not 0 <= value < float("inf"):
                raise InputError(f"model.objective.{name} is {value}, must be at least 0")
        self.weight, self.last_weight = weight, last_weight

    def __call__(self, scores: BranchScores) -> Tensor:
        """Returns nats a token, and `weight` times nats a token of the effect."""
        tokens = scores.tokens
        if tokens is None or tokens.effect is None:
            raise RuntimeError("no effect of the history was computed")
        place = torch.arange(len(tokens.branch), device=tokens.branch.device)
        depth = place - torch.searchsorted(tokens.branch, tokens.branch)
        share = depth / (scores.length[tokens.branch] - 1).clamp(min=1)
        both = tokens.log_probability + self.weight * tokens.effect
        return answer_loss(scores, both, "tokens", 1 - (1 - self.last_weight) * share)
