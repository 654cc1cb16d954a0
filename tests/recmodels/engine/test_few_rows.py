"""The last feed-forward runs for the tokens that are read, and nothing else changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from recmodels.backbones.causal import CausalBackbone
from tests.recmodels.oracle import tree_batch, tuned

CASES = [([5, 6, 7, 8, 9, 10], [[8, 9, 10], [8, 11], [12]]), ([5, 6, 9, 4], [[8], [13, 14, 15]])]


def rows_of_the_last_feed_forward(backbone: CausalBackbone) -> list[int]:
    """Filled with the rows that its inner layer computes, call by call."""
    rows: list[int] = []
    layer: Any = backbone.layers()[-1]
    layer.mlp.down_proj.register_forward_hook(lambda module, given, made: rows.append(made.shape[1]))
    return rows


@pytest.mark.parametrize("kind", ["lora", "adapter", "prefix"])
def test_rows_that_predict_nothing_are_not_computed(tiny_causal: Path, kind: str) -> None:
    backbone = tuned(kind, tiny_causal).backbone
    layer: Any = backbone.layers()[-1]
    batch, rows = tree_batch(CASES, 64, 2048), rows_of_the_last_feed_forward(backbone)
    trained = [value for value in backbone.model.parameters() if value.requires_grad]
    found: list[list[Tensor]] = []
    for whole in (False, True):
        if whole:  # what is read no longer matters to a block that computes everything twice
            layer.gradient_checkpointing = True
        scores = backbone.log_likelihood(batch)
        found.append([scores, *torch.autograd.grad(scores.square().sum(), trained, allow_unused=True)])
    read = len(batch.label_place.unique())
    assert rows[0] == read < len(batch.token)
    assert rows[1] == len(batch.token)
    for few, every in zip(*found, strict=True):
        torch.testing.assert_close(few, every, atol=1e-4, rtol=1e-4)


def test_afterwards_a_feed_forward_is_as_before(tiny_causal: Path) -> None:
    backbone = tuned("lora", tiny_causal).backbone
    mlp: Any = backbone.layers()[-1]
    before = dict(vars(mlp.mlp))
    with torch.no_grad():
        backbone.log_likelihood(tree_batch(CASES, 64, 2048))
        with pytest.raises(RuntimeError, match="out of DATA bounds"):
            backbone.hidden_states(*forest_of_two(), read=torch.tensor([7]))
    assert vars(mlp.mlp) == before


def forest_of_two() -> tuple[Tensor, Tensor, Tensor, int, list[int]]:
    """One row of two tokens, and a place that it does not have is asked for."""
    return torch.tensor([3, 4]), torch.tensor([2, 2]), torch.tensor([0, 1]), 0, [0, 2]
