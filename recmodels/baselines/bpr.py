"""BPR-MF: matrix factorisation trained to put a chosen item above one that was not.

# U cases, B branches, W windows, H events, N negatives, T events, D dimensions
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from datamodules.contract.batch import InteractionBatch, SequenceBatch
from datamodules.contract.errors import InputError
from recmodels.baselines.sequential import ItemEmbeddingRecommender, pair_scores


class BPR(ItemEmbeddingRecommender):
    """Bayesian personalised ranking (Rendle et al. 2009, arXiv 1205.2618).

    It knows users by their training events alone: what a case's history holds beyond them it does not see, and a user
    with fewer than two training events keeps an untrained vector.

    Args:
        dimensions: of the vectors D.
        regularization: weight of the squared lengths of the vectors in a step.
        **kwargs: of `Recommender`.

    Raises:
        InputError: no dimensions, or a negative weight.
    """

    def __init__(self, dimensions: int = 64, regularization: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if dimensions < 1:
            raise InputError(f"model.dimensions is {dimensions}, must be at least 1")
        if not 0 <= regularization < float("inf"):
            raise InputError(f"model.regularization is {regularization}, must be a number from 0")
        self.dimensions, self.regularization = dimensions, regularization

    def build(self, users: int, items: int) -> None:
        """Makes the two tables."""
        self.user, self.item = nn.Embedding(users, self.dimensions), nn.Embedding(items, self.dimensions)
        for table in (self.user, self.item):
            nn.init.xavier_normal_(table.weight)

    def forward(self, batch: InteractionBatch) -> Tensor:
        """Returns scores `[B]`: product of the user's and the item's vector.

        Raises:
            InputError: the model has not been fitted, or a user was not there in training.
        """
        self.configure_model()
        if bool((batch.user < 0).any()):
            raise InputError("BPR knows only the users it was trained on; rank new users with SASRec or ItemKNN")
        return pair_scores(self.user(batch.user), self.item.weight, batch.branch_case, batch.branch_item)

    def item_vectors(self) -> Tensor:
        """Returns the items' table `[I, D]`."""
        return self.item.weight

    def loss(self, batch: SequenceBatch) -> Tensor:
        """Returns the mean over events and their negatives of -log sigmoid of the difference of scores."""
        owner = self.user(batch.user)[:, None].expand(-1, batch.item.shape[1], -1)[batch.own]  # [T, D]
        chosen, other = self.item(batch.item[batch.own]), self.item(batch.negative[batch.own])
        difference = (owner * chosen).sum(-1, keepdim=True) - torch.einsum("td,tnd->tn", owner, other)
        loss = nn.functional.softplus(-difference).mean()
        if self.regularization:
            loss = loss + self.regularization * sum(v.square().sum() for v in (owner, chosen, other)) / len(owner)
        return loss
