"""The effect of a history, against two forwards of every answer and cross-entropy of the difference of their logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from datamodules.contract.errors import InputError
from datamodules.datasets.movielens import MovieLens100K
from datamodules.items.base import ItemForm
from datamodules.items.title import Title
from datamodules.items.token import Token
from datamodules.protocol.rules import Protocol
from recmodels.methods.lora import LoRATuning
from recmodels.methods.scoring import DataKnown, known_of
from recmodels.objectives import CausalEffect
from tests.datamodules.options import grouped
from tests.recmodels.oracle import KINDS, Case, away, tree_batch, tuned

CASES: list[Case] = [
    ([1, 5, 9, 17, 3, 22], [[7, 8], [7, 11, 4], [30]]),
    ([1, 5, 9, 40, 41], [[12, 6, 2, 9], [2, 7, 8]]),
    ([1, 6], [[30]]),
]
BLANK = [1, 5, 44]


def logits_of(model: Any, prompt: list[int], answer: list[int]) -> Tensor:
    """Logits `[n, V]` of an answer's tokens, by plain causal attention over one sequence."""
    ids = torch.tensor([prompt + answer])
    size = ids.shape[1]
    mask = torch.ones(size, size, dtype=torch.bool).tril()[None, None]
    hidden = model.backbone.body(
        input_ids=ids, attention_mask=mask, position_ids=torch.arange(size)[None], use_cache=False
    ).last_hidden_state[0, len(prompt) - 1 : -1]
    table = model.backbone.item_table
    made: Tensor = model.backbone.head(hidden) if table is None else hidden @ table.tables[-1].T
    return made


def loss_of(rows: list[tuple[Tensor, Tensor, list[int]]], weight: float, last: float) -> Tensor:
    """As the paper's trainer has it: weights fall evenly over an answer, and both means are by weight."""
    plain, effect, total = torch.zeros(()), torch.zeros(()), torch.zeros(())
    for with_history, without, answer in rows:
        for number, token in enumerate(answer):
            share = 1 - number * (1 - last) / (len(answer) - 1) if len(answer) > 1 else 1.0
            plain = plain + share * cross_entropy(with_history[number], torch.tensor(token))
            effect = effect + share * cross_entropy(with_history[number] - without[number], torch.tensor(token))
            total = total + share
    return (plain + weight * effect) / total


@pytest.mark.parametrize("cases", [CASES, CASES[2:]], ids=["several", "one token"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "plain"])
def test_a_step_is_that_of_two_forwards(tiny_causal: Path, kind: str, cases: list[Case]) -> None:
    model: Any = away(tuned(kind, tiny_causal))
    model.log, model.objective = lambda *a, **k: None, CausalEffect(weight=0.7, last_weight=0.4)
    model.known = DataKnown(blank=torch.tensor(BLANK))
    loss = model.training_step(tree_batch(cases, 64, 2048), 0)
    rows = [(logits_of(model, prompt, right), logits_of(model, BLANK, right), right) for prompt, (right, *_) in cases]
    expected = loss_of(rows, 0.7, 0.4)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    trained = list(model.trained().values())
    for one, two in zip(*(torch.autograd.grad(each, trained) for each in (loss, expected)), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("paraphrase", [1, 2, "dense"])
@pytest.mark.parametrize("items", [Title(), Token()], ids=lambda form: type(form).__name__)
def test_on_data_it_is_the_prompt_without_titles(
    mini_data: Path, tiny_causal: Path, items: ItemForm, paraphrase: Any
) -> None:
    options = grouped(batch_size=2, paraphrase=paraphrase)
    data: Any = MovieLens100K(backbone=str(tiny_causal), items=items, protocol=Protocol(negatives=3), **options)
    data.setup()
    model: Any = LoRATuning(backbone=str(tiny_causal), objective=CausalEffect(weight=0.7, last_weight=0.4))
    model.item_tokens, model.log, model.known = (
        data.item_tokens,
        lambda *a, **k: None,
        known_of(data, "sum", model.objective),
    )
    model.configure_model()
    away(model).eval()
    batch, first = next(iter(data.train_dataloader())), data.collator.slates.first_item or 0
    blank, encoder = model.known.blank.tolist(), data.collator.slates.encoder
    text = encoder.tokenizer.decode(blank)
    assert not [title for title in data.frozen.text.titles if title in text]
    rows, place = [], torch.arange(len(batch.token))
    for branch in range(len(batch.branch_case)):
        mine = batch.label_branch == branch
        before = batch.label_place[mine][0]
        prompt = batch.token[(place <= before) & (before < batch.end)].tolist()
        answer = batch.label_token[mine].tolist()
        rows.append(
            (logits_of(model, prompt, answer), logits_of(model, blank, answer), [token - first for token in answer])
        )
    torch.testing.assert_close(model.training_step(batch, 0), loss_of(rows, 0.7, 0.4), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cell": "P1,I2,T2"}, "needs prompts of the history alone, in one wording; use data.cell P1,I0,T2"),
        ({"task": "reranking"}, "needs answers out of the whole catalogue, of a causal backbone; use data.task=match"),
    ],
)
def test_prompts_that_tell_more_are_refused(
    mini_data: Path, tiny_causal: Path, options: dict[str, Any], message: str
) -> None:
    data = MovieLens100K(backbone=str(tiny_causal), protocol=Protocol(negatives=3), **grouped(**options))
    data.setup()
    with pytest.raises(InputError, match=f"model.objective 'causal_effect' {message}"):
        known_of(data, "sum", CausalEffect())
