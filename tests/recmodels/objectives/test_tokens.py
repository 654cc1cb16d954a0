"""Label smoothing, weights of tokens and the catalogue's own probabilities, against the logits of one token at a time."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from datamodules.batching.catalogue import build_trie, catalogue_answers
from datamodules.contract.batch import CatalogueBatch, PromptTreeBatch
from datamodules.contract.errors import InputError
from datamodules.datasets.movielens import MovieLens100K
from datamodules.items.base import ItemForm
from datamodules.items.title import Title
from datamodules.items.token import Token
from datamodules.protocol.rules import Protocol
from recmodels.engine.prompt_tree import label_log_probabilities
from recmodels.methods.lora import LoRATuning
from recmodels.methods.scoring import known_of, nodes_of, predictor, scoring_of, token_scores
from recmodels.methods.zero_shot import ZeroShot
from recmodels.objectives import CatalogueLikelihood, Contrastive, Likelihood
from tests.datamodules.options import grouped
from tests.recmodels.oracle import CASES, tree_batch

FORMS: list[ItemForm] = [Title(), Token()]


@pytest.mark.parametrize("chunk", [None, 2])
def test_smoothing_is_that_of_cross_entropy_and_so_is_its_gradient(chunk: int | None) -> None:
    torch.manual_seed(0)
    weight, hidden = torch.randn(4, 9, requires_grad=True), torch.randn(10, 4, requires_grad=True)
    place, token = torch.tensor([3, 0, 7, 3, 9, 3]), torch.tensor([0, 1, 2, 3, 8, 0])
    share = torch.tensor([1.0, -2, 3, 0.5, 1, 4])

    def smoothed() -> Tensor:
        return label_log_probabilities(hidden, lambda h: h @ weight, place, token, chunk, smoothing=0.3)

    expected = -cross_entropy((hidden @ weight)[place], token, label_smoothing=0.3, reduction="none")
    found = [(value, *torch.autograd.grad((value * share).sum(), (hidden, weight))) for value in (smoothed(), expected)]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    with torch.no_grad():
        torch.testing.assert_close(smoothed(), expected)


def test_a_smoothed_loss_is_cross_entropy_of_the_right_answers(tiny_causal: Path) -> None:
    torch.manual_seed(3)
    model = LoRATuning(backbone=str(tiny_causal), objective=Likelihood(smoothing=0.2))
    model.log = lambda *a, **k: None  # type: ignore[method-assign]
    model.configure_model()
    logits, labels = [], []
    for prompt, (right, *_) in CASES:
        token = torch.tensor([*prompt, *right])
        size = len(token)
        rest: Any = (torch.full((size,), size), torch.arange(size), 0, (0, size))
        hidden = model.backbone.hidden_states(token, *rest)  # type: ignore[union-attr]
        logits.append(model.backbone.head(hidden)[len(prompt) - 1 : -1])
        labels.append(token[len(prompt) :])
    expected = cross_entropy(torch.cat(logits), torch.cat(labels), label_smoothing=0.2)
    torch.testing.assert_close(model.training_step(tree_batch(CASES, 64, 2048), 0), expected)


def data_of(folder: Path, items: ItemForm, **options: Any) -> MovieLens100K:
    protocol = options.pop("protocol", Protocol(history=5, negatives=4))
    data = MovieLens100K(backbone=str(folder), items=items, protocol=protocol, **grouped(batch_size=3, **options))
    data.setup()
    return data


def model_of(data: MovieLens100K, kind: Any = LoRATuning, **options: Any) -> Any:
    """A model that Lightning would have set up with the data."""
    torch.manual_seed(0)
    model = kind(backbone=data.backbone, **options)
    model._trainer = SimpleNamespace(datamodule=data, precision="32-true")
    model.log = lambda *a, **k: None
    model.setup("fit")
    model._trainer = None
    model.configure_model()
    for value in model.trained().values():
        torch.nn.init.normal_(value, std=0.1)
    return model.eval()


def logits_at(model: Any, batch: PromptTreeBatch, place: Tensor) -> Tensor:
    """Logits behind one place, of a sequence of its own: of all words, or of all items where they are tokens."""
    places = torch.arange(len(batch.token))
    path = batch.token[(places <= place) & (place < batch.end)]
    size = len(path)
    hidden = model.backbone.hidden_states(path, torch.full((size,), size), torch.arange(size), 0, (0, size))[-1]
    table = model.backbone.item_table
    return model.backbone.head(hidden) if table is None else hidden @ table.tables[-1].T


@pytest.mark.parametrize("paraphrase", [1, "dense"])
@pytest.mark.parametrize("items", FORMS, ids=lambda form: type(form).__name__)
def test_what_the_catalogue_allows_is_what_its_titles_go_on_with(
    mini_data: Path, tiny_causal: Path, items: ItemForm, paraphrase: Any
) -> None:
    data = data_of(tiny_causal, items, paraphrase=paraphrase)
    collator: Any = data.collator
    titles, first = catalogue_answers(collator.slates), collator.slates.first_item or 0
    model = model_of(data, objective=CatalogueLikelihood())
    batch: Any = next(iter(data.train_dataloader()))
    got = token_scores(predictor(model.backbone, batch), batch, model.known.trie, "probabilities")
    assert got.allowed is not None
    assert got.choices is not None
    values, choices = [], []
    for branch in range(len(batch.branch_case)):
        mine = (batch.label_branch == branch).nonzero().flatten().tolist()
        answer = batch.label_token[mine].tolist()
        for number, label in enumerate(mine):
            follows = sorted({t[number] for t in titles if t[:number] == answer[:number] and len(t) > number})
            logits = logits_at(model, batch, batch.label_place[label])
            own = logits[torch.tensor(follows) - first].log_softmax(-1)
            values.append(own[follows.index(answer[number])])
            choices.append(len(follows))
    expected = torch.stack(values)
    torch.testing.assert_close(got.log_probability - got.allowed, expected, rtol=1e-5, atol=1e-5)
    assert got.choices.tolist() == choices

    losses = [(model.training_step(batch, 0), -expected.mean())]
    certain = torch.tensor([0.25 if count == 1 else 1.0 for count in choices])
    model.objective = Likelihood(certain_weight=0.25)
    losses.append((model.training_step(batch, 0), -(got.log_probability * certain).sum() / certain.sum()))
    for loss, other in losses:
        torch.testing.assert_close(loss, other, rtol=1e-5, atol=1e-5)
        found = [torch.autograd.grad(each, list(model.trained().values()), allow_unused=True) for each in (loss, other)]
        for one, two in zip(*found, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def test_with_items_as_tokens_it_is_the_likelihood(mini_data: Path, tiny_causal: Path) -> None:
    data = data_of(tiny_causal, Token())
    batch = next(iter(data.train_dataloader()))
    losses = []
    for objective in (CatalogueLikelihood(), Likelihood()):
        losses.append(model_of(data, objective=objective).training_step(batch, 0))
    torch.testing.assert_close(*losses)


@torch.no_grad()
def test_scores_among_the_catalogue_are_a_distribution_over_its_titles(mini_data: Path, tiny_causal: Path) -> None:
    """Whole catalogues and lists of candidates are scored alike, and probabilities of all titles add up to one."""
    data = data_of(tiny_causal, Title(), protocol=Protocol(history=5, candidates="full", exclude_seen=False))
    model = model_of(data, ZeroShot, scoring="catalogue")
    batch: Any = next(iter(data.test_dataloader()))
    assert isinstance(batch, CatalogueBatch)
    answers = list(map(tuple, catalogue_answers(data.collator.slates)))  # type: ignore[union-attr]
    scores = model(batch)
    for case in range(len(batch.case)):
        mine = batch.branch_case == case
        titles = {
            answers[item]: score for item, score in zip(batch.branch_item[mine].tolist(), scores[mine], strict=True)
        }
        assert len(titles) == len(set(answers)) < len(answers)
        assert float(torch.stack(list(titles.values())).exp().sum()) == pytest.approx(1, abs=1e-5)
    collator: Any = data.collator
    slates = [data.slates.evaluation(data.cases("test"), case) for case in batch.case.tolist()]
    listed = collator.trees([[slate] for slate in slates])
    assert isinstance(listed, PromptTreeBatch)
    torch.testing.assert_close(model(listed), scores, atol=1e-4, rtol=0)


def test_what_was_read_in_training_stays_and_a_test_reads_its_own_catalogue(mini_data: Path, tiny_causal: Path) -> None:
    titles, tokens = data_of(tiny_causal, Title()), data_of(tiny_causal, Token())
    for scoring, of in (("sum", titles), ("catalogue", tokens)):
        model: Any = LoRATuning(backbone=str(tiny_causal), objective=CatalogueLikelihood(), scoring=scoring)
        for stage, data in (("fit", titles), ("test", tokens)):
            model._trainer = SimpleNamespace(datamodule=data, precision="32-true")
            model.setup(stage)
        wanted: Any = of.collator
        assert model.known.trie.key == wanted.trie.key


def test_what_cannot_be_read_of_a_catalogue_is_refused(mini_data: Path, tiny_causal: Path, tiny_t5: Path) -> None:
    with pytest.raises(InputError, match=r"model\.scoring catalogue scores whole catalogues; use model\.retrieval="):
        LoRATuning(scoring="catalogue", retrieval="beam")
    with pytest.raises(InputError, match=r"model\.length_normalised is model\.scoring mean, and model\.scoring is sum"):
        scoring_of("sum", True, "exhaustive")
    for data in (data_of(tiny_causal, Title(), task="reranking"), data_of(tiny_t5, Title())):
        with pytest.raises(InputError, match="needs answers out of the whole catalogue.*use data.task=matching"):
            known_of(data, "catalogue", None)
        with pytest.raises(InputError, match="model.objective 'likelihood' needs answers out of the whole catalogue"):
            model_of(data, objective=Likelihood(certain_weight=0.0))
        with pytest.raises(InputError, match="model.objective 'contrastive' needs answers out of the whole catalogue"):
            model_of(data, objective=Contrastive())
    with pytest.raises(InputError, match="an answer is none of the catalogue's"):
        nodes_of(build_trie([[5, 6], [5, 7]]), torch.tensor([5, 8]), torch.tensor([0, 0]))
