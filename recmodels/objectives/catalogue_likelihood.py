"""Language modelling of the right answers among those that the catalogue has."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from datamodules.contract.objectives import ObjectiveNeeds
from recmodels.objectives.base import BranchScores, Objective
from recmodels.objectives.likelihood import Mean, answer_loss


class CatalogueLikelihood(Objective):
    """Likelihood among the tokens with which a title of the catalogue can go on, as constrained decoding sees them.

    Tokens to which there is no alternative cost nothing, so the unique tail of a title is not learnt (D3,
    arXiv 2406.14900, leaves them out of its scores). Where items are tokens it is `Likelihood`.

    Args:
        mean: over all tokens of the right answers, or first over each answer's.

    Example:
        >>> import torch
        >>> from recmodels.objectives.base import TokenScores
        >>> log, case = torch.tensor([-2.0, -3.0]), torch.tensor([0])
        >>> tokens = TokenScores(torch.tensor([0, 0]), log, allowed=torch.tensor([-1.0, -3.0]))
        >>> scores = BranchScores(log.sum()[None], torch.tensor([2]), log[:1], torch.ones(1), case, tokens=tokens)
        >>> CatalogueLikelihood()(scores).item()
        0.5
    """

    needs: ClassVar[ObjectiveNeeds] = ObjectiveNeeds("catalogue_likelihood")
    needs_catalogue = "probabilities"

    def __init__(self, mean: Mean = "tokens") -> None:
        self.mean = mean

    def __call__(self, scores: BranchScores) -> Tensor:
        """Returns nats a token."""
        tokens = scores.tokens
        if tokens is None or tokens.allowed is None:
            raise RuntimeError("nothing was computed of what the catalogue allows")
        return answer_loss(scores, tokens.log_probability - tokens.allowed, self.mean)
