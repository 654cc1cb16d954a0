"""R-Drop: two passes with other dropout, against logits and torch's own divergence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

import recmodels
from datamodules.batching.catalogue import build_trie
from datamodules.contract.errors import InputError
from datamodules.datasets.movielens import MovieLens100K
from datamodules.items.token import Token
from recmodels import objectives
from recmodels.methods.lora import LoRATuning
from recmodels.methods.scoring import DataKnown
from recmodels.methods.start import StartingWeights
from recmodels.objectives import Likelihood
from tests.datamodules.options import grouped
from tests.recmodels.backbones import encoder_decoders as pairs
from tests.recmodels.oracle import CASES, away, tree_batch

PROMPTS, ANSWERS = ([1, 5, 9, 17, 3, 22], [1, 5, 9, 40, 41]), [[7, 8], [7, 11, 4], [30, 2], [12, 6, 2]]


def model_of(folder: Path, **options: Any) -> Any:
    torch.manual_seed(3)
    model: Any = LoRATuning(backbone=str(folder), lora_dropout=0.4, **options)
    model.log = lambda *a, **k: None
    model.configure_model()
    return away(model).train()


def symmetric(first: Tensor, second: Tensor) -> Tensor:
    """By torch, a row each."""
    one, two = first.log_softmax(-1), second.log_softmax(-1)
    ways = [kl_div(*pair, log_target=True, reduction="none").sum(-1) for pair in ((one, two), (two, one))]
    return (ways[0] + ways[1]) / 2


@pytest.mark.parametrize("encoder_decoder", [False, True])
def test_the_loss_is_both_passes_and_their_divergence(tiny_causal: Path, tiny_t5: Path, encoder_decoder: bool) -> None:
    model = model_of(tiny_t5 if encoder_decoder else tiny_causal, r_drop=0.7)
    batch: Any = pairs.tree_batch(CASES) if encoder_decoder else tree_batch(CASES, 64, 2048)
    torch.manual_seed(7)
    loss = model.training_step(batch, 0)
    torch.manual_seed(7)
    states = [model.backbone.batch_states(batch, batch.label_place) for _ in range(2)]
    right = (batch.relevance > 0)[batch.label_branch]
    first, second = (model.backbone.head(hidden[batch.label_place[right]]) for hidden in states)
    token = batch.label_token[right]
    plain = (cross_entropy(first, token) + cross_entropy(second, token)) / 2
    apart = symmetric(first, second).mean()
    assert float(apart.detach()) > 1e-3
    torch.testing.assert_close(loss, plain + 0.7 * apart, rtol=1e-5, atol=1e-5)
    trained = list(model.trained().values())
    gradients = [torch.autograd.grad(value, trained) for value in (loss, plain + 0.7 * apart)]
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-5)


def test_without_dropout_it_is_the_objective_whichever_that_is(tiny_causal: Path) -> None:
    batch = tree_batch([(prompt, ANSWERS) for prompt in PROMPTS], 16, 2048)
    for name in objectives.__all__:
        objective = getattr(objectives, name)()
        if objective.needs.task is not None:
            continue
        losses = []
        for weight in (0.0, 3.0):
            model = model_of(tiny_causal, r_drop=weight, objective=objective).eval()
            model.known = DataKnown(build_trie(ANSWERS), torch.tensor(PROMPTS[1]))
            model._start = StartingWeights(model.trained()) if objective.needs_reference else None
            losses.append(model.training_step(batch, 0))
        torch.testing.assert_close(losses[1], losses[0], msg=name)


def test_items_that_are_tokens_are_compared_among_items(mini_data: Path, tiny_causal: Path) -> None:
    data: Any = MovieLens100K(backbone=str(tiny_causal), items=Token(), **grouped(batch_size=2))
    data.setup()
    torch.manual_seed(3)
    model: Any = LoRATuning(backbone=str(tiny_causal), lora_dropout=0.4, r_drop=0.5)
    model.item_tokens = data.item_tokens
    model.configure_model()
    states = torch.randn(2, 4, 32, generator=torch.Generator().manual_seed(2))
    words = torch.tensor([5, data.item_tokens.first, 7, data.item_tokens.first + 3])
    table = model.backbone.item_table.tables[-1]
    expected = symmetric(*(model.backbone.head(each) for each in states))
    expected[[1, 3]] = symmetric(*(each[[1, 3]] @ table.T for each in states))
    torch.testing.assert_close(model.backbone.divergence(*states, words), expected, rtol=1e-5, atol=1e-5)


def test_what_has_no_dropout_or_one_pass_is_refused(tiny_causal: Path) -> None:
    model = LoRATuning(backbone=str(tiny_causal), r_drop=1.0, dropout=0.0, objective=Likelihood())
    with pytest.raises(InputError, match="model.r_drop compares two passes with dropout, and there is none"):
        model.configure_model()
    for value in (-1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match=r"model\.r_drop is .*, must be at least 0"):
            LoRATuning(r_drop=value)
    with pytest.raises(InputError, match=r"model\.tuning\.r_drop is set, and a tagger"):
        recmodels.TokenClassification(tuning=LoRATuning(r_drop=1.0))
