"""The engine is exact: branches of a tree score as separate sequences do, and so do their gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from recmodels.backbones.causal import CausalBackbone, load_causal, prove_tree_attention
from recmodels.engine.prompt_tree import Head, label_log_probabilities, tree_mask
from tests.recmodels.oracle import CASE_LISTS, KINDS, check_batching, engine_scores, separate_scores, tree_batch, tuned


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cases=CASE_LISTS, row_tokens=st.sampled_from([1, 20, 200]), answer_tokens=st.sampled_from([3, 2048]))
@pytest.mark.parametrize("kind", KINDS)
def test_scores_equal_separate_sequences(
    backbones: dict[str, CausalBackbone],
    kind: str,
    cases: list[tuple[list[int], list[list[int]]]],
    row_tokens: int,
    answer_tokens: int,
) -> None:
    batch = tree_batch(cases, row_tokens, answer_tokens)
    with torch.no_grad():
        got = engine_scores(backbones[kind], batch)
        for padding in ("left", "right"):
            torch.testing.assert_close(got, separate_scores(backbones[kind], cases, padding), atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_equal_those_of_separate_sequences(backbones: dict[str, CausalBackbone], kind: str) -> None:
    backbone = backbones[kind]
    if kind == "plain":
        backbone.model.requires_grad_(True)
    cases = [([5, 6, 7], [[8, 9, 10], [8, 11], [12]]), ([5, 6, 9, 4], [[8], [13, 14, 15]])]
    parameters = [p for p in backbone.model.parameters() if p.requires_grad]
    weights = torch.tensor([1.0, -0.5, 0.3, 2.0, -1.0])
    got = torch.autograd.grad((engine_scores(backbone, tree_batch(cases, 200, 2048)) * weights).sum(), parameters)
    expected = torch.autograd.grad((separate_scores(backbone, cases, "right") * weights).sum(), parameters)
    one, other = (torch.cat([g.flatten() for g in gradient]) for gradient in (got, expected))
    assert float((one - other).norm()) <= 1e-5 * float(other.norm())


def test_mask_lets_a_token_see_its_ancestors_only() -> None:
    #  0 -> 1 -> 2, 0 -> 3; padding 4
    mask = tree_mask(torch.tensor([[4, 3, 3, 4, 5]]))[0, 0]
    seen = [[j for j in range(5) if mask[i, j]] for i in range(5)]
    assert seen == [[0], [0, 1], [0, 1, 2], [0, 3], [4]]


def test_logits_exist_for_labelled_places_only() -> None:
    asked: list[int] = []

    def head(states: torch.Tensor) -> torch.Tensor:
        asked.append(len(states))
        return states @ torch.eye(4, 9)

    place = torch.tensor([3, 3, 7, 3] * 10)
    label_log_probabilities(torch.randn(2, 50, 4), head, place, torch.tensor([0, 1, 2, 3] * 10))
    assert asked == [16]  # two predicting tokens, rounded up: not a hundred tokens and not forty labels


def test_chunks_do_not_change_values_or_gradients() -> None:
    torch.manual_seed(0)
    weight = torch.randn(4, 9, requires_grad=True)
    hidden = torch.randn(2, 5, 4, requires_grad=True)
    place, token = torch.tensor([3, 0, 7, 3, 9, 1]), torch.tensor([0, 1, 2, 3, 8, 8])
    results = []
    for chunk in (1, 2, 100):
        value = label_log_probabilities(hidden, lambda h: h @ weight, place, token, chunk=chunk)
        results.append((value, *torch.autograd.grad(value.sum(), (hidden, weight))))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            torch.testing.assert_close(a, b)


def test_rounded_logits_do_not_rank() -> None:
    """Under bfloat16 picked logits are those of float32; what is left is the rounding of one normaliser for all."""
    torch.manual_seed(0)
    layer = nn.Linear(64, 500, bias=True)
    layer.weight.data *= 12
    hidden, token = torch.randn(1, 3, 64).bfloat16(), torch.arange(500).repeat(3)
    place = torch.arange(3).repeat_interleave(500)
    for head in (Head(layer), Head(layer, 0.5, torch.randn(1, 500), 20.0)):
        exact = head(hidden.float())[0].double().log_softmax(-1).flatten()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            rounded = head(hidden)[0].detach().bfloat16().double().log_softmax(-1).flatten()
            scores = label_log_probabilities(hidden, head, place, token).double()
        error = (scores - exact).view(3, -1)
        torch.testing.assert_close(error - error.mean(1, keepdim=True), torch.zeros_like(error), atol=2e-4, rtol=0)
        spread = (rounded - exact.detach()).view(3, -1)
        assert float((spread - spread.mean(1, keepdim=True)).abs().max()) > 0.01


def test_label_log_probabilities_equal_log_softmax_and_its_gradient() -> None:
    torch.manual_seed(0)
    weight = torch.randn(4, 9, requires_grad=True)
    hidden = torch.randn(10, 4, requires_grad=True)
    place, token = torch.tensor([3, 0, 7, 3, 9, 3]), torch.tensor([0, 1, 2, 3, 8, 0])
    share = torch.tensor([1.0, -2, 3, 0.5, 1, 4])
    found = []
    for value in (
        label_log_probabilities(hidden, lambda h: h @ weight, place, token),
        (hidden @ weight).log_softmax(-1)[place, token],
    ):
        found.append((value, *torch.autograd.grad((value * share).sum(), (hidden, weight))))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_narrow_logits_are_normalised_in_float32_and_give_narrow_gradients() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(10, 4).bfloat16().requires_grad_()
    weight = torch.randn(4, 9).bfloat16()
    position, token = torch.tensor([3, 0, 7, 3]), torch.tensor([0, 1, 2, 8])
    value = label_log_probabilities(hidden, lambda h: h @ weight, position, token)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, (hidden @ weight).float().log_softmax(-1)[position, token])
    assert torch.autograd.grad(value.sum(), hidden)[0].dtype == torch.bfloat16


def test_a_backbone_that_ignores_trees_is_refused(tiny_causal: Path) -> None:
    from datamodules.contract.errors import InputError

    backbone = load_causal(str(tiny_causal), "float32")
    body = backbone.body
    original = body.forward

    def deaf(*args: object, **kwargs: object) -> object:
        kwargs.pop("position_ids", None)  # an architecture that makes its own positions
        return original(*args, **kwargs)

    body.forward = deaf  # type: ignore[method-assign, assignment]
    with pytest.raises(InputError, match="does not honour prompt trees"):
        prove_tree_attention(backbone)


@pytest.mark.parametrize("kind", ["lora", "prefix"])
def test_scores_do_not_depend_on_batching(tiny_causal: Path, mini_data: Path, kind: str) -> None:
    check_batching(tuned(kind, tiny_causal), tiny_causal)
