"""Users and items brought together as vectors, beside the likelihood."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from datamodules.contract.errors import InputError
from datamodules.contract.objectives import ObjectiveNeeds
from recmodels.objectives.base import BranchScores, Objective, Representations, check_positive
from recmodels.objectives.likelihood import Likelihood


class Contrastive(Objective):
    """Likelihood, and InfoNCE (van den Oord et al. 2018, arXiv 1807.03748) of a user's vector and those of items.

    A user's vector is the state before the answer, an item's that at the end of its title read alone. The other answers
    of the batch are negatives, those of other users and sampled ones (`data.train_negatives`) alike. Right answers of
    the same user are left out; their share of the negatives is logged as `train/false_negatives`.

    Args:
        weight: of InfoNCE beside the likelihood.
        temperature: divides the cosines; below 1 the nearest negatives weigh more.

    Example:
        >>> user, right = torch.eye(2), torch.eye(2, dtype=torch.bool)
        >>> vectors = Representations(user, user, right, right)
        >>> round(info_nce(vectors, temperature=1.0).item(), 4)  # log(1 + 1 / e)
        0.3133
    """

    needs: ClassVar[ObjectiveNeeds] = ObjectiveNeeds("contrastive")
    needs_representations = True

    def __init__(self, weight: float = 0.1, temperature: float = 0.07) -> None:
        check_positive(temperature=temperature)
        if not 0 <= weight < float("inf"):
            raise InputError(f"model.objective.weight is {weight}, must be at least 0")
        self.weight, self.temperature = weight, temperature

    def __call__(self, scores: BranchScores) -> Tensor:
        """Returns nats a token, and `weight` times nats a right answer."""
        return Likelihood()(scores) + self.weight * info_nce(_vectors(scores), self.temperature)

    def observed(self, scores: BranchScores) -> dict[str, Tensor]:
        """Returns the share of the batch's negatives that are right answers of the same user."""
        vectors = _vectors(scores)
        false = (vectors.known & ~vectors.right).sum()
        return {"false_negatives": false / (~vectors.right).sum().clamp(min=1)}


def info_nce(vectors: Representations, temperature: float) -> Tensor:
    """Returns the mean over right answers of the cross-entropy of one among it and the items that are not known."""
    cosine = normalize(vectors.user.float(), dim=-1) @ normalize(vectors.item.float(), dim=-1).T / temperature
    case, item = vectors.right.nonzero(as_tuple=True)
    itself = torch.arange(len(vectors.item), device=item.device) == item[:, None]
    among = cosine[case].masked_fill(vectors.known[case] & ~itself, -torch.inf)
    return (among.logsumexp(-1) - cosine[case, item]).mean()


def _vectors(scores: BranchScores) -> Representations:
    if scores.representations is None:
        raise RuntimeError("no representations were computed")
    return scores.representations
