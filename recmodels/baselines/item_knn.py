"""ItemKNN: items are alike when the same users chose them.

# U cases, B branches, I items, K neighbours
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from datamodules.contract.batch import EventBatch, InteractionBatch
from datamodules.contract.errors import InputError
from recmodels.baselines.closed_form import ClosedForm, history_counts, sparse_scores, user_item_matrix

_CELLS = 1 << 25  # similarities held at once: 128 MB


class ItemKNN(ClosedForm):
    """Scores an item by its cosine similarity to those of the history that are among its nearest neighbours.

    Deshpande and Karypis 2004, doi:10.1145/963770.963776. Similarities are over the users of the training events;
    neighbours of equal similarity are taken in the order of the catalogue.

    Args:
        neighbours: items that each item keeps as its neighbours.
        shrink: added to the denominator of the cosine; the more, the less a few common users weigh.
        cutoffs: the k of HR@k and NDCG@k.

    Raises:
        InputError: no neighbours, or a negative shrinkage.
    """

    solved: ClassVar[tuple[str, ...]] = ("neighbour", "similarity")
    neighbour: Tensor  # [I, K]
    similarity: Tensor  # [I, K]

    def __init__(self, neighbours: int = 100, shrink: float = 0.0, cutoffs: Sequence[int] = (1, 3, 5, 10)) -> None:
        super().__init__(cutoffs=cutoffs)
        if neighbours < 1:
            raise InputError(f"model.neighbours is {neighbours}, must be at least 1")
        if not 0 <= shrink < float("inf"):
            raise InputError(f"model.shrink is {shrink}, must be a number from 0")
        self.neighbours, self.shrink = neighbours, shrink

    def solve(self, events: EventBatch) -> dict[str, Tensor]:
        """Finds each item's neighbours."""
        neighbour, similarity = nearest_items(user_item_matrix(events), self.neighbours, self.shrink)
        return {"neighbour": neighbour, "similarity": similarity}

    def score_branches(self, batch: InteractionBatch) -> Tensor:
        """Returns scores `[B]`: similarities of an item's neighbours that are in the history, added up."""
        seen = history_counts(batch.history, len(self.neighbour))
        return sparse_scores(self.neighbour, self.similarity, seen, batch.branch_case, batch.branch_item)


def nearest_items(matrix: Tensor, neighbours: int, shrink: float = 0.0) -> tuple[Tensor, Tensor]:
    """Returns each item's nearest items by cosine over users; a stripe of the similarities is held at a time.

    Returns:
        `[I, K]` item codes, nearest first, and `[I, K]` similarities in float32; 0 where no user is shared.

    Example:
        >>> matrix = torch.tensor([[1.0, 1, 0], [1, 1, 1]]).to_sparse()
        >>> item, similarity = nearest_items(matrix, 1)
        >>> item.tolist(), similarity.tolist()
        ([[1], [0], [0]], [[1.0], [1.0], [0.7071067690849304]])
    """
    matrix = matrix.coalesce()
    items, users = matrix.shape[1], matrix.shape[0]
    user, item = matrix.indices()
    order = item.argsort(stable=True)
    user, item = user[order], item[order]
    count = torch.bincount(item, minlength=items)
    begin = torch.cat((count.new_zeros(1), count.cumsum(0))).tolist()
    norm = count.double().sqrt()
    width = min(neighbours, max(1, items - 1))
    nearest: list[tuple[Tensor, Tensor]] = []
    rows = max(1, _CELLS // items)
    for first in range(0, items, rows):
        last = min(first + rows, items)
        here = slice(begin[first], begin[last])
        index = torch.stack((item[here] - first, user[here]))
        ones, shape = torch.ones_like(user[here], dtype=torch.float32), (last - first, users)
        stripe = torch.sparse_coo_tensor(index, ones, shape, check_invariants=False)
        common = torch.sparse.mm(stripe, matrix).to_dense().double()  # [stripe, I], whole numbers
        row = torch.arange(first, last, device=common.device)
        common[row - first, row] = 0.0  # no item is its own neighbour
        cosine = (common / (norm[first:last, None] * norm + shrink).clamp(min=1e-12)).float()
        value, column = cosine.sort(dim=1, descending=True, stable=True)
        nearest.append((column[:, :width].clone(), value[:, :width].clone()))
    return torch.cat([column for column, _ in nearest]), torch.cat([value for _, value in nearest])
