"""Users and items as vectors, against each sequence read alone, and InfoNCE against cross-entropy row by row."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy

from recmodels.objectives import Contrastive, Likelihood
from recmodels.objectives.base import Representations
from recmodels.objectives.contrastive import info_nce
from tests.recmodels.oracle import KINDS, Case, away, tree_batch, tuned

CASES: list[Case] = [
    ([1, 5, 9, 17, 3, 22], [[7, 8], [7, 11, 4], [30]]),
    ([1, 5, 9, 40, 41], [[12, 6, 2], [7, 11, 4]]),
    ([1, 6], [[7, 11, 4]]),
]
"""Their first answers are right; items 0 to 3 are `[7, 8]`, `[7, 11, 4]`, `[30]` and `[12, 6, 2]`."""
ITEMS, ITEM = [[7, 8], [7, 11, 4], [30], [12, 6, 2]], torch.tensor([0, 1, 2, 3, 1, 1])


def last_state(model: Any, ids: list[int]) -> Tensor:
    """Of a sequence read alone, with plain causal attention."""
    size = len(ids)
    mask = torch.ones(size, size, dtype=torch.bool).tril()[None, None]
    places = torch.arange(size)[None]
    output = model.backbone.body(
        input_ids=torch.tensor([ids]), attention_mask=mask, position_ids=places, use_cache=False
    )
    state: Tensor = output.last_hidden_state[0, -1]
    return state


@pytest.mark.parametrize("owner", [[0, 1, 2], [0, 1, 0], [5, 5, 5]])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "plain"])
def test_the_loss_is_that_of_sequences_read_alone(tiny_causal: Path, kind: str, owner: list[int]) -> None:
    model: Any = away(tuned(kind, tiny_causal))
    model.objective, logged = Contrastive(weight=0.7, temperature=0.3), {}
    model.log = lambda name, value, **_: logged.update({name: float(value)})
    batch = replace(tree_batch(CASES, 64, 2048), branch_item=ITEM, owner=torch.tensor(owner))
    loss = model.training_step(batch, 0)

    items, rights = torch.stack([last_state(model, ids) for ids in ITEMS]), [0, 3, 1]
    losses, negatives, false = [], 0, 0
    for case, (prompt, _) in enumerate(CASES):
        known = {rights[other] for other in range(3) if owner[other] == owner[case]} - {rights[case]}
        among = [rights[case], *(item for item in range(4) if item not in known | {rights[case]})]
        cosine = cosine_similarity(last_state(model, prompt)[None], items[among]) / 0.3
        losses.append(cross_entropy(cosine[None], torch.tensor([0])))
        negatives, false = negatives + 3, false + len(known)
    model.objective = Likelihood()
    expected = model.training_step(batch, 0) + 0.7 * torch.stack(losses).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    assert logged["train/false_negatives"] == pytest.approx(false / negatives)
    trained = list(model.trained().values())
    for one, two in zip(*(torch.autograd.grad(each, trained) for each in (loss, expected)), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-5)


def test_several_right_answers_are_no_negatives_of_each_other() -> None:
    user, item = torch.randn(2, 4, generator=torch.Generator().manual_seed(1)), torch.eye(4)
    right = torch.tensor([[True, True, False, False], [False, False, True, False]])
    cosine = cosine_similarity(user[:, None], item, dim=-1) / 0.5
    rows = [(0, 0, [0, 2, 3]), (0, 1, [1, 2, 3]), (1, 2, [0, 1, 2, 3])]
    losses = [-cosine[case, among].log_softmax(-1)[among.index(wanted)] for case, wanted, among in rows]
    loss = info_nce(Representations(user, item, right, right), temperature=0.5)
    torch.testing.assert_close(loss, torch.stack(losses).mean())


def test_many_texts_are_read_in_several_stretches(tiny_causal: Path) -> None:
    model = away(tuned("lora", tiny_causal))
    texts = [[3 + (number * 7 + place) % 50 for place in range(1 + number % 5)] for number in range(120)]
    size = torch.tensor([len(text) for text in texts])
    states = model.backbone.text_states(torch.tensor([token for text in texts for token in text]), size)
    assert int(size.sum()) > 256
    for number in (0, 1, 77, 119):
        end = int(size[: number + 1].sum()) - 1
        torch.testing.assert_close(states[end], last_state(model, texts[number]), rtol=1e-4, atol=1e-5)
