"""Every objective with every tuning method, and with every way of writing items and windows, or refused in one line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from datamodules.batching.catalogue import build_trie
from datamodules.contract.errors import InputError
from datamodules.contract.objectives import ModelNeeds, ObjectiveNeeds
from datamodules.datasets.movielens import MovieLens100K
from datamodules.items.base import ItemForm
from datamodules.items.title import Title
from datamodules.items.token import Token
from datamodules.protocol.rules import Protocol
from recmodels import objectives
from recmodels.methods.lora import LoRATuning
from recmodels.methods.scoring import DataKnown, known_of
from recmodels.methods.start import StartingWeights
from recmodels.methods.token_classification import TokenClassification
from recmodels.objectives import DPO
from recmodels.objectives.base import Objective
from tests.datamodules.options import grouped
from tests.recmodels.methods.support_matrix import METHODS, build, documented
from tests.recmodels.oracle import Case, tree_batch

# transformers' and PEFT's own words about each other and about their defaults.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("UserWarning", "DeprecationWarning", "FutureWarning")
]
OBJECTIVES: dict[str, type[Objective]] = {name: getattr(objectives, name) for name in objectives.__all__}
PROMPTS, ANSWERS = ([1, 5, 9, 17, 3, 22], [1, 5, 9, 40, 41]), [[7, 8], [7, 11, 4], [30, 2], [12, 6, 2], [2, 7, 8]]


def batch_for(needs: ObjectiveNeeds) -> Any:
    """Two prompts with the answers that an objective needs."""
    count = {"like": 2, "rating": 5, None: 4}[needs.task]
    cases: list[Case] = [(prompt, ANSWERS[:count]) for prompt in PROMPTS]
    answers: Any = {"like": "fixed", "rating": "ratings", None: "candidates"}[needs.task]
    return replace(tree_batch(cases, 16, 2048), answers=answers)


@pytest.mark.parametrize("method", METHODS)
def test_every_objective_trains_what_a_method_declares(method: str) -> None:
    family = "llama" if documented()[method]["llama"] == "yes" else "gpt2"  # which has biases
    model = build(method, family).train()
    model.known = DataKnown(build_trie(ANSWERS), torch.tensor(PROMPTS[1]))
    for name, kind in OBJECTIVES.items():
        objective = model.objective = kind()
        model._start = StartingWeights(model.trained()) if objective.needs_reference else None
        loss = model.training_step(batch_for(objective.needs), 0)
        found = torch.autograd.grad(loss, list(model.trained().values()), allow_unused=True)
        gradients = [gradient for gradient in found if gradient is not None]
        assert all(torch.isfinite(gradient).all() for gradient in gradients), name
        assert sum(float(gradient.abs().sum()) for gradient in gradients) > 0, name


@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_the_reference_is_the_model_before_its_first_step(method: str) -> None:
    model = build(method, "llama" if documented()[method]["llama"] == "yes" else "gpt2")
    batch, first = batch_for(DPO.needs), model.eval()(batch_for(DPO.needs))
    start = StartingWeights(model.trained())
    for value in model.trained().values():
        value.add_(torch.randn(value.shape, generator=torch.Generator().manual_seed(1)), alpha=0.3)
    moved = model(batch)
    assert not torch.allclose(first, moved, atol=1e-3)
    model.train()
    torch.testing.assert_close(start.log_likelihood(model.backbone, batch, model.trained()), first)
    assert torch.equal(model.eval()(batch), moved)


@pytest.mark.parametrize("paraphrase", [1, "dense"])
@pytest.mark.parametrize("items", [Title(), Token()], ids=lambda form: type(form).__name__)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_takes_every_kind_of_items_and_windows(
    mini_data: Path, tiny_causal: Path, name: str, items: ItemForm, paraphrase: Any
) -> None:
    needs = OBJECTIVES[name].needs
    options: dict[str, Any] = {"batch_size": 2, "paraphrase": paraphrase, "task": needs.task}
    asked = ModelNeeds("prompt_tree", needs.name, needs.task, needs.negatives)
    make = {"backbone": str(tiny_causal), "items": items, "needs": asked, "protocol": Protocol(negatives=3)}
    outcome = "yes"
    try:
        data = MovieLens100K(**make, **grouped(**options))
        data.setup()
    except InputError as error:
        outcome = str(error)
        assert "\n" not in outcome
    if outcome == "yes":
        model: Any = LoRATuning(backbone=str(tiny_causal), objective=OBJECTIVES[name]())
        model.item_tokens, model.log = data.item_tokens, lambda *a, **k: None
        model.known = known_of(data, "sum", model.objective)
        model.configure_model()
        model.training_step(next(iter(data.train_dataloader())), 0).backward()
        assert sum(float(v.grad.abs().sum()) for v in model.trained().values() if v.grad is not None) > 0
    # Open lists are of titles; whether a title is liked is another wording.
    assert (outcome != "yes") == (needs.task is not None and paraphrase == "dense"), outcome


def test_a_tagger_has_no_objective(tiny_encoder: Path) -> None:
    with pytest.raises(
        InputError, match=r"model\.tuning\.objective is DPO, and a tagger has a loss of its own; leave it"
    ):
        TokenClassification(backbone=str(tiny_encoder), tuning=LoRATuning(objective=DPO()))


@pytest.mark.parametrize("name", [name for name, kind in OBJECTIVES.items() if kind.needs.negatives])
def test_an_objective_without_its_negatives_is_refused_before_anything_is_read(name: str) -> None:
    needs = OBJECTIVES[name].needs
    asked = ModelNeeds("prompt_tree", needs.name, needs.task, needs.negatives)
    with pytest.raises(
        InputError, match=f"model.objective '{needs.name}' needs negatives, and data.train_negatives is 0"
    ):
        MovieLens100K(needs=asked, **grouped(train_negatives=0))
