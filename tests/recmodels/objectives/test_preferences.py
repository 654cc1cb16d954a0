"""Preference losses: each against its paper's formula, and a step against padded pairs and a copied reference model."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, sigmoid

from recmodels.backbones.causal import load_causal
from recmodels.methods.adapter import AdapterTuning
from recmodels.methods.base import InstructionRecommender
from recmodels.methods.full import FullTuning
from recmodels.methods.lora import LoRATuning
from recmodels.methods.prefix import PrefixTuning
from recmodels.objectives import DMPO, DPO, SimPO, SoftmaxDPO
from recmodels.objectives.base import BranchScores, Objective
from tests.recmodels.oracle import CASES, separate_scores, tree_batch

REAL = st.floats(-9, 9)
ANSWERS = st.lists(st.tuples(REAL, REAL, st.integers(1, 9)), min_size=2, max_size=6)
"""Of each answer of a case, the right one first: log-likelihood now and before, and tokens."""

Answer = tuple[float, float, int]


def dpo(case: list[Answer]) -> list[float]:
    """arXiv 2305.18290, equation 7, for every pair."""
    (now, before, _), *wrong = case
    return [-math.log(_sigmoid(0.3 * (now - before) - 0.3 * (n - b))) for n, b, _ in wrong]


def softmax_dpo(case: list[Answer]) -> list[float]:
    """arXiv 2406.09215, equation 11."""
    (now, before, _), *wrong = case
    total = sum(math.exp(0.3 * (n - b) - 0.3 * (now - before)) for n, b, _ in wrong)
    return [-math.log(_sigmoid(-math.log(total)))]


def dmpo(case: list[Answer]) -> list[float]:
    """arXiv 2405.16127, equation 6."""
    (now, before, _), *wrong = case
    mean = sum(0.3 * (n - b) for n, b, _ in wrong) / len(wrong)
    return [-math.log(_sigmoid(0.3 * (now - before) - mean))]


def simpo(case: list[Answer]) -> list[float]:
    """arXiv 2405.14734, equation 6, for every pair."""
    (now, _, size), *wrong = case
    return [-math.log(_sigmoid(0.3 * now / size - 0.3 * n / length - 0.7)) for n, _, length in wrong]


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


FORMULAS: list[tuple[Objective, Callable[[list[Answer]], list[float]]]] = [
    (DPO(beta=0.3), dpo),
    (SoftmaxDPO(beta=0.3), softmax_dpo),
    (DMPO(beta=0.3), dmpo),
    (SimPO(beta=0.3, margin=0.7), simpo),
]


@pytest.mark.parametrize(("objective", "formula"), FORMULAS, ids=lambda one: getattr(one, "__name__", ""))
@given(cases=st.lists(ANSWERS, min_size=1, max_size=4))
def test_losses_are_those_of_the_papers(
    objective: Objective, formula: Callable[[list[Answer]], list[float]], cases: list[list[Answer]]
) -> None:
    now, before, length = (
        torch.tensor(column, dtype=torch.float64)
        for column in zip(*(answer for case in cases for answer in case), strict=True)
    )
    right = torch.tensor([float(not place) for case in cases for place in range(len(case))])
    case = torch.arange(len(cases)).repeat_interleave(torch.tensor([len(case) for case in cases]))
    wanted = [value for one in cases for value in formula(one)]
    got = objective(BranchScores(now, length, now, right, case, reference=before))
    assert got.item() == pytest.approx(sum(wanted) / len(wanted), abs=1e-6)


def test_the_order_of_answers_is_nothing() -> None:
    now, before = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    right, case, length = torch.tensor([0.0, 0, 1, 0]), torch.zeros(4, dtype=torch.long), torch.tensor([1, 2, 3, 4])
    other = torch.tensor([2, 0, 3, 1])
    for objective, _ in FORMULAS:
        loss = objective(BranchScores(now, length, now, right, case, reference=before))
        turned = BranchScores(now[other], length[other], now[other], right[other], case, reference=before[other])
        torch.testing.assert_close(objective(turned), loss)


METHODS: dict[str, Callable[[str, Objective], InstructionRecommender]] = {
    "lora": lambda folder, objective: LoRATuning(backbone=folder, objective=objective, r=2),
    "adapter": lambda folder, objective: AdapterTuning(backbone=folder, objective=objective, bottleneck=3),
    "prefix": lambda folder, objective: PrefixTuning(backbone=folder, objective=objective, length=3),
    "full": lambda folder, objective: FullTuning(backbone=folder, objective=objective),
}


def padded_loss(kind: Objective, now: Tensor, before: Tensor) -> Tensor:
    """Of `CASES`, whose first answer is the right one, from scores of separately padded sequences."""
    losses, begin = [], 0
    for _, answers in CASES:
        mine, length = slice(begin, begin + len(answers)), torch.tensor([len(answer) for answer in answers])
        gain = 0.3 * (now[mine] - before[mine])
        if isinstance(kind, DPO):
            losses.append(-(sigmoid(gain[0] - gain[1:])).log())
        elif isinstance(kind, SoftmaxDPO):
            losses.append(-sigmoid(-(gain[1:] - gain[0]).exp().sum().log()).log()[None])
        elif isinstance(kind, DMPO):
            losses.append(-sigmoid(gain[0] - gain[1:].mean()).log()[None])
        else:
            mean = 0.3 * now[mine] / length
            losses.append(-sigmoid(mean[0] - mean[1:] - 0.7).log())
        begin += len(answers)
    return torch.cat(losses).mean()


@pytest.mark.parametrize("objective", [objective for objective, _ in FORMULAS], ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("method", METHODS)
def test_steps_equal_those_with_padded_pairs_and_a_copied_reference(
    tiny_causal: Path, method: str, objective: Objective
) -> None:
    torch.manual_seed(3)
    model = METHODS[method](str(tiny_causal), objective)
    model.log = lambda *a, **k: None  # type: ignore[method-assign]
    model.configure_model()
    other = copy.deepcopy(model)
    reference = copy.deepcopy(other.backbone)
    batch = tree_batch(CASES, 64, 2048)
    optimizers = [torch.optim.SGD(one.trained().values(), lr=0.3) for one in (model, other)]
    for _ in range(3):  # at first all gains are zero
        loss = model.training_step(batch, 0)
        with torch.no_grad():
            before = separate_scores(reference, CASES, "right")  # type: ignore[arg-type]
        expected = padded_loss(objective, separate_scores(other.backbone, CASES, "right"), before)  # type: ignore[arg-type]
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
        for optimizer, value in zip(optimizers, (loss, expected), strict=True):
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
    for name, value in model.trained().items():
        torch.testing.assert_close(value, other.trained()[name], rtol=1e-4, atol=1e-5, msg=name)


def test_the_reference_knows_no_dropout_and_stays_where_training_began(tiny_causal: Path) -> None:
    torch.manual_seed(3)
    model = LoRATuning(backbone=str(tiny_causal), objective=DPO(), lora_dropout=0.5)
    model.log = lambda *a, **k: None  # type: ignore[method-assign]
    model.configure_model()
    for value in model.trained().values():
        torch.nn.init.normal_(value, std=0.1)
    batch, start = tree_batch(CASES, 64, 2048), model._start
    assert start is not None
    with torch.no_grad():
        untuned = separate_scores(load_causal(str(tiny_causal), "float32"), CASES, "right")  # type: ignore[arg-type]
    kept = {name: value.detach().clone() for name, value in model.trained().items()}
    for _ in range(2):
        torch.testing.assert_close(start.log_likelihood(model.backbone, batch, model.trained()), untuned)
    assert all(torch.equal(value, kept[name]) for name, value in model.trained().items())
    assert model.network is not None
    assert model.network.training
    assert not [name for name in model.state_dict() if "start" in name], "no part of a checkpoint"
