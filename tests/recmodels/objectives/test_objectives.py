"""Objectives: each against torch's own loss or a closed form; the room finds every one of them by itself."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from datamodules.contract.errors import InputError
from datamodules.contract.objectives import NAMED_NEEDS, ObjectiveNeeds
from recmodels import objectives
from recmodels.metrics.rating import rating_values
from recmodels.objectives import (
    DMPO,
    DPO,
    CausalEffect,
    Contrastive,
    Likelihood,
    Listwise,
    Rating,
    SimPO,
    SoftmaxDPO,
    YesNo,
    objective_named,
)
from recmodels.objectives.base import BranchScores, Objective, Representations, TokenScores
from recmodels.objectives.rating import expected_rating

FOLDER = Path(__file__).parents[3] / "configs" / "objective"
SHEETS = {path: yaml.safe_load(path.read_text()) for path in sorted(FOLDER.glob("*.yaml"))}
CLASSES = [getattr(objectives, name) for name in objectives.__all__]
REAL = st.floats(-20, 20)
STARS = st.lists(st.tuples(st.lists(REAL, min_size=5, max_size=5), st.floats(1, 5)), min_size=1, max_size=6)
LISTS = st.lists(st.lists(REAL, min_size=2, max_size=7), min_size=1, max_size=6)


def batch_for(needs: ObjectiveNeeds, seed: int = 0, step: Tensor | None = None) -> BranchScores:
    """A toy batch of what an objective may read; its first case has the right answer first, the second one last.

    Scores are drawn, or are those of the same draw after a step.
    """
    answers = {"like": 2, "rating": 5, None: 4}[needs.task]
    draw = torch.Generator().manual_seed(seed)
    score = torch.randn(3 * answers, generator=draw)
    score = (score if step is None else score + step).requires_grad_()
    length = torch.randint(1, 6, (3 * answers,), generator=draw)
    relevance = torch.zeros(3, answers)
    relevance[torch.arange(3), torch.tensor([0, -1, 0])] = 1
    case = torch.arange(3).repeat_interleave(answers)
    value = rating_values(torch.arange(answers).repeat(3)) if needs.task == "rating" else None
    branch = torch.arange(3 * answers).repeat_interleave(length)
    choices = torch.randint(1, 3, branch.shape, generator=draw)
    allowed, effect = torch.rand(2, *branch.shape, generator=draw)
    tokens = TokenScores(branch, score[branch], choices, allowed, effect)
    reference = torch.randn(3 * answers, generator=draw)
    user, item = torch.randn(2, 3, 5, generator=draw)
    vectors = Representations(user, item, torch.eye(3) > 0, torch.eye(3) > 0)
    return BranchScores(score * length, length, score, relevance.flatten(), case, value, reference, tokens, vectors)


def scored(cases: list[list[float]], relevance: list[list[float]], value: Tensor | None = None) -> BranchScores:
    score = torch.tensor([each for case in cases for each in case], dtype=torch.float64).requires_grad_()
    case = torch.arange(len(cases)).repeat_interleave(torch.tensor([len(case) for case in cases]))
    gains = torch.tensor([each for case in relevance for each in case], dtype=torch.float64)
    return BranchScores(score, torch.ones(len(score)), score, gains, case, value)


def one_hot(place: int, length: int) -> list[float]:
    return [float(i == place) for i in range(length)]


def shared(rating: float) -> list[float]:
    """Gains of one to five stars whose mean is the rating."""
    return [max(0.0, 1 - abs(rating - stars)) for stars in range(1, 6)]


def test_every_export_has_a_config_and_every_config_an_export() -> None:
    assert CLASSES
    named = [sheet["model"]["init_args"]["objective"]["class_path"] for sheet in SHEETS.values()]
    assert sorted(named) == sorted(objectives.__all__)
    files = [path for path in Path(objectives.__file__).parent.glob("*.py") if path.stem not in ("__init__", "base")]
    assert sorted(path.stem for path in files) == sorted(path.stem for path in SHEETS)


@pytest.mark.parametrize("objective", CLASSES)
def test_every_objective_cites_its_paper_and_has_a_loss_and_a_gradient(objective: type[Objective]) -> None:
    assert re.search(r"arXiv \d{4}\.\d{4,5}|doi:10\.", objective.__doc__ or "")
    options = next(
        sheet["model"]["init_args"]["objective"].get("init_args", {})
        for sheet in SHEETS.values()
        if sheet["model"]["init_args"]["objective"]["class_path"] == objective.__name__
    )
    batch = batch_for(objective.needs)
    loss, default = objective(**options)(batch), objective()(batch)
    assert loss.shape == ()
    assert torch.isfinite(loss)
    assert loss.item() == default.item(), "the config shows the defaults"
    (gradient,) = torch.autograd.grad(loss, batch.score)
    assert torch.isfinite(gradient).all()
    assert gradient.abs().sum() > 0
    better = batch_for(objective.needs, step=-1e-2 * gradient)
    assert objective()(better) < loss


def test_old_names_are_the_classes_with_their_defaults() -> None:
    kinds: dict[Any, type[Objective]] = {
        "likelihood": Likelihood,
        "listwise": Listwise,
        "yes_no": YesNo,
        "rating": Rating,
    }
    for name, kind in kinds.items():
        made = objective_named(name)
        assert type(made) is kind
        assert vars(made) == vars(kind())
        assert made.needs == NAMED_NEEDS[name]
    ready = Listwise(temperature=2.0)
    assert objective_named(ready) is ready


@given(st.lists(st.tuples(st.floats(-50, -0.1), st.integers(1, 9), st.booleans()), min_size=1, max_size=8))
def test_likelihood_is_the_mean_over_tokens_or_over_answers(answers: list[tuple[float, int, bool]]) -> None:
    answers = [*answers, (-3.0, 2, True)]
    total, length, right = (torch.tensor(column, dtype=torch.float64) for column in zip(*answers, strict=True))
    batch = BranchScores(total, length, total, right, torch.arange(len(answers)))
    # As `cross_entropy` over labelled tokens: every token of an answer has the answer's mean log-probability.
    tokens = torch.cat([(t / n).expand(int(n)) for t, n, r in zip(total, length, right, strict=True) if r])
    assert Likelihood()(batch).item() == pytest.approx(-tokens.mean().item())
    answer_means = [t / n for t, n, r in answers if r]
    assert Likelihood(mean="answers")(batch).item() == pytest.approx(-np.mean(answer_means))


@given(LISTS, st.data(), st.floats(0.1, 5))
def test_listwise_is_cross_entropy_of_the_right_answer(
    cases: list[list[float]], data: st.DataObject, temperature: float
) -> None:
    places = [data.draw(st.integers(0, len(case) - 1)) for case in cases]
    batch = scored(cases, [one_hot(place, len(case)) for place, case in zip(places, cases, strict=True)])
    expected = torch.stack(
        [
            functional.cross_entropy(torch.tensor(case, dtype=torch.float64) / temperature, torch.tensor(place))
            for case, place in zip(cases, places, strict=True)
        ]
    )
    assert Listwise(temperature)(batch).item() == pytest.approx(expected.mean().item(), abs=1e-9)


@given(st.lists(st.tuples(REAL, REAL, st.booleans()), min_size=1, max_size=8), st.floats(0.1, 9))
def test_yes_no_is_binary_cross_entropy(cases: list[tuple[float, float, bool]], weight: float) -> None:
    batch = scored([[yes, no] for yes, no, _ in cases], [[float(liked), float(not liked)] for *_, liked in cases])
    logit = torch.tensor([yes - no for yes, no, _ in cases], dtype=torch.float64)
    label = torch.tensor([liked for *_, liked in cases], dtype=torch.float64)
    expected = functional.binary_cross_entropy_with_logits(logit, label, pos_weight=torch.tensor(weight))
    assert YesNo(weight)(batch).item() == pytest.approx(expected.item(), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(
    ("error", "oracle"),
    [
        ("squared", lambda gap: gap**2),
        ("absolute", abs),
        ("huber", lambda gap: gap**2 / 2 if abs(gap) < 1 else abs(gap) - 0.5),
    ],
)
@given(cases=STARS)
def test_rating_is_the_error_of_the_expectation(
    cases: list[tuple[list[float], float]], error: Any, oracle: Any
) -> None:
    scores = np.array([case for case, _ in cases])
    weight = np.exp(scores - scores.max(1, keepdims=True))
    expected = (weight / weight.sum(1, keepdims=True)) @ np.arange(1, 6)

    value = rating_values(torch.arange(5).repeat(len(cases)))
    batch = scored([case for case, _ in cases], [shared(rating) for _, rating in cases], value)
    np.testing.assert_allclose(
        expected_rating(batch.score, batch.branch_case, value).detach().numpy(), expected, atol=1e-9
    )
    wanted = np.mean([oracle(mean - rating) for mean, (_, rating) in zip(expected, cases, strict=True)])
    assert Rating(error)(batch).item() == pytest.approx(wanted, abs=1e-6)


def test_the_gradient_moves_towards_the_rating() -> None:
    batch = scored([[0.0] * 5], [shared(5.0)], torch.arange(1.0, 6.0))
    (gradient,) = torch.autograd.grad(Rating()(batch), batch.score)
    assert gradient[4] < 0 < gradient[0]


def test_no_objective_overflows_on_large_scores() -> None:
    """The largest score of each case is taken off before the exponential."""
    listed = scored([[1e4, 0.0, -1e4], [-1e4, -2e4, -1e4]], [one_hot(0, 3), one_hot(2, 3)])
    assert Listwise()(listed).item() == pytest.approx(np.log(2) / 2)
    assert YesNo()(scored([[2e4, -2e4]], [[0.0, 1.0]])).item() == pytest.approx(4e4)


@pytest.mark.parametrize(
    ("objective", "cases", "message"),
    [
        (Listwise(), [[1.0], [1.0, 2.0]], "needs negatives; set data.train_negatives"),
        (YesNo(), [[1.0, 2.0, 3.0]], "exactly two answers a case; use data.task=like"),
        (DPO(), [[1.0, 2.0], [1.0]], "the dpo objective needs negatives; set data.train_negatives"),
        (SoftmaxDPO(), [[1.0], [1.0, 2.0]], "the softmax_dpo objective needs negatives; set data.train_negatives"),
        (DMPO(), [[1.0]], "the dmpo objective needs negatives; set data.train_negatives"),
        (SimPO(), [[1.0]], "the simpo objective needs negatives; set data.train_negatives"),
        (Rating(), [[1.0, 2.0]], "answers that are ratings; use data.task=rating"),
    ],
)
def test_batches_that_do_not_fit_are_refused(objective: Objective, cases: list[list[float]], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        objective(scored(cases, [one_hot(0, len(case)) for case in cases]))


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_options_without_meaning_are_refused(value: float) -> None:
    with pytest.raises(InputError, match=r"model\.objective\.temperature is .*, must be"):
        Listwise(temperature=value)
    with pytest.raises(InputError, match=r"model\.objective\.positive_weight is .*, must be"):
        YesNo(positive_weight=value)
    for preference in (DPO, SoftmaxDPO, DMPO, SimPO):
        with pytest.raises(InputError, match=r"model\.objective\.beta is .*, must be above 0"):
            preference(beta=value)
    with pytest.raises(InputError, match=r"model\.objective\.temperature is .*, must be above 0"):
        Contrastive(temperature=value)


def test_shares_and_margins_out_of_range_are_refused() -> None:
    for value in (-0.1, 1.0, float("nan")):
        with pytest.raises(InputError, match=r"model\.objective\.smoothing is .*, must be 0 to below 1"):
            Likelihood(smoothing=value)
    for value in (-0.1, float("nan"), float("inf")):
        with pytest.raises(InputError, match=r"model\.objective\.certain_weight is .*, must be at least 0"):
            Likelihood(certain_weight=value)
        with pytest.raises(InputError, match=r"model\.objective\.margin is .*, must be at least 0"):
            SimPO(margin=value)
        with pytest.raises(InputError, match=r"model\.objective\.weight is .*, must be at least 0"):
            Contrastive(weight=value)
        with pytest.raises(InputError, match=r"model\.objective\.last_weight is .*, must be at least 0"):
            CausalEffect(last_weight=value)
