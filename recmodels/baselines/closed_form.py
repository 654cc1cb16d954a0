"""Recommenders that are solved from all training events at once, without a gradient.

# U cases, B branches, H history, I items, K entries of a sparse row, D columns
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from datamodules.contract.batch import BatchFormat, EventBatch, InteractionBatch
from datamodules.contract.errors import InputError
from recmodels.base import Kind, Recommender

_CELLS = 1 << 22  # numbers gathered at once: temporaries stay below 50 MB


class ClosedForm(Recommender):
    """A recommender whose fit is one call of `solve`; a checkpoint keeps exactly what that returned.

    Args:
        cutoffs: the k of HR@k and NDCG@k.
    """

    batch_format: ClassVar[BatchFormat] = "interactions"
    kind: ClassVar[Kind] = "reference"
    solved: ClassVar[tuple[str, ...]]
    """Names of the tensors that `solve` returns."""

    def __init__(self, cutoffs: Sequence[int] = (1, 3, 5, 10)) -> None:
        super().__init__(cutoffs=cutoffs)
        self.automatic_optimization = False
        for name in self.solved:
            self.register_buffer(name, torch.zeros(0))

    @abstractmethod
    def solve(self, events: EventBatch) -> dict[str, Tensor]:
        """Returns the tensors that scores are computed from, by the names in `solved`."""

    @abstractmethod
    def score_branches(self, batch: InteractionBatch) -> Tensor:
        """Returns scores `[B]`, after `solve`."""

    def checkpoint_keys(self) -> set[str]:
        """Returns what was solved for."""
        return set(self.solved)

    def configure_optimizers(self) -> None:
        """None: nothing descends a gradient."""

    def training_step(self, batch: EventBatch, batch_idx: int) -> None:
        """Solves, and ends the training."""
        for name, value in self.solve(batch).items():
            setattr(self, name, value)
        self.trainer.should_stop = True

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes the sizes from the checkpoint."""
        for name in self.solved:
            if isinstance(value := checkpoint["state_dict"].get(name), Tensor):
                setattr(self, name, torch.zeros_like(value))
        super().on_load_checkpoint(checkpoint)

    def forward(self, batch: InteractionBatch) -> Tensor:
        """Returns scores `[B]`.

        Raises:
            InputError: the model has not been fitted.
        """
        if any(len(getattr(self, name)) == 0 for name in self.solved):
            raise InputError(f"{type(self).__name__} has not been fitted; run fit first, or give --ckpt_path")
        return self.score_branches(batch)


def history_counts(history: Tensor, items: int) -> Tensor:
    """Returns `[U, I]`: 1 where a history `[U, H]` of item codes, -1 at padding, holds the item, else 0; float32.

    Example:
        >>> history_counts(torch.tensor([[-1, 2, 2], [0, 1, 2]]), 4).tolist()
        [[0.0, 0.0, 1.0, 0.0], [1.0, 1.0, 1.0, 0.0]]
    """
    table = torch.zeros(len(history), items + 1, device=history.device)
    return table.scatter_(1, history.where(history >= 0, items), 1.0)[:, :items]


def sparse_scores(column: Tensor, weight: Tensor, query: Tensor, case: Tensor, item: Tensor) -> Tensor:
    """Returns `[B]`: products of sparse rows of items with dense rows of cases, some branches at a time.

    An item's row has values `weight` in columns `column`, both `[I, K]`, 0 at padding; a case's is in `query` `[U, D]`.

    Example:
        >>> column, weight = torch.tensor([[0, 2], [1, 0]]), torch.tensor([[1.0, 3.0], [2.0, 0.0]])
        >>> sparse_scores(column, weight, torch.tensor([[1.0, 10, 100]]), torch.tensor([0, 0]), torch.tensor([0, 1]))
        tensor([301.,  20.])
    """
    rows = max(1, _CELLS // max(1, column.shape[1]))
    parts = [
        (weight[i] * query[c[:, None], column[i]]).sum(1)
        for c, i in zip(case.split(rows), item.split(rows), strict=True)
    ]
    return torch.cat(parts)


def user_item_matrix(events: EventBatch) -> Tensor:
    """Returns the training events as a sparse `[users, items]` matrix of ones; repeated events count once.

    Example:
        >>> events = EventBatch(torch.tensor([0, 0, 1]), torch.tensor([1, 1, 0]), users=2, items=3)
        >>> user_item_matrix(events).to_dense().tolist()
        [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]
    """
    pairs = torch.unique(events.user * events.items + events.item)
    index = torch.stack((pairs // events.items, pairs % events.items))
    ones = torch.ones(len(pairs), device=pairs.device)
    shape = (events.users, events.items)
    return torch.sparse_coo_tensor(index, ones, shape, is_coalesced=True, check_invariants=False)
