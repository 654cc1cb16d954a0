"""Our normalisation is Llama's, and takes its place and no other's."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from recmodels.layers import fused
from recmodels.layers.fused import RMSNorm, replace_norms
from tests.recmodels.backbones.families import FAMILIES, SIZES


def llamas(width: int, dtype: torch.dtype) -> LlamaRMSNorm:
    torch.manual_seed(5)
    layer = LlamaRMSNorm(width, eps=1e-5)
    nn.init.normal_(layer.weight, 1.0, 0.3)
    return layer.to(dtype)


def results(layer: nn.Module, states: Tensor, weighting: Tensor) -> list[Tensor]:
    states = states.clone().requires_grad_()
    made = layer(states)
    return [made, *torch.autograd.grad((made * weighting).sum(), [states, *layer.parameters()])]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(7, 24), (2, 7, 24), (1, 24)])
def test_values_and_gradients_are_llamas(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    theirs = llamas(24, dtype)
    ours = RMSNorm(theirs.weight, theirs.variance_epsilon)
    states, weighting = 3 * torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    for one, other in zip(results(ours, states, weighting), results(theirs, states, weighting), strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torchs_kernel_gives_the_same_and_autocast_changes_nothing(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = llamas(24, dtype)
    ours = RMSNorm(theirs.weight, theirs.variance_epsilon)
    states, weighting = 3 * torch.randn(2, 7, 24).to(dtype), torch.randn(2, 7, 24).to(dtype)
    expected = results(theirs, states, weighting)
    monkeypatch.setattr(fused, "has_fused_norm", lambda *_: True)
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            for one, other in zip(results(ours, states, weighting), expected, strict=True):
                assert one.dtype == other.dtype
                narrow = dtype == torch.bfloat16  # whose gradients near zero are differences of rounded products
                torch.testing.assert_close(one, other, atol=2e-3 if narrow else 1e-6, rtol=2e-2 if narrow else 1e-5)


@pytest.mark.parametrize(
    ("cuda", "states", "weight", "taken"),
    [
        (True, torch.float32, torch.float32, True),
        (True, torch.bfloat16, torch.bfloat16, True),
        (True, torch.bfloat16, torch.float32, False),
        (False, torch.float32, torch.float32, False),
    ],
)
def test_the_device_chooses_the_kernel(cuda: bool, states: torch.dtype, weight: torch.dtype, taken: bool) -> None:
    given: Any = SimpleNamespace(is_cuda=cuda, dtype=states)
    assert fused.has_fused_norm(given, torch.ones(2, dtype=weight)) == taken


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_narrows_nothing(dtype: torch.dtype) -> None:
    theirs = llamas(576, dtype)
    ours = RMSNorm(theirs.weight, theirs.variance_epsilon)
    states, weighting = 3 * torch.randn(40, 576).to(dtype), torch.randn(40, 576).to(dtype)
    plain = results(ours, states, weighting)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for one, other, same in zip(
            results(ours, states, weighting), results(theirs, states, weighting), plain, strict=True
        ):
            torch.testing.assert_close(one, same, atol=0, rtol=0)
            torch.testing.assert_close(one, other, atol=2e-6, rtol=1e-5 if dtype == torch.float32 else 1e-2)


def test_narrow_states_under_a_wide_weight_widen_as_llamas_do() -> None:
    theirs = llamas(24, torch.float32)
    ours, states = RMSNorm(theirs.weight, theirs.variance_epsilon), torch.randn(7, 24).bfloat16()
    torch.testing.assert_close(ours(states), theirs(states))


def test_a_frozen_weight_gets_no_gradient() -> None:
    layer = RMSNorm(nn.Parameter(torch.ones(4), requires_grad=False), 1e-5)
    states = torch.randn(3, 4, requires_grad=True)
    layer(states).sum().backward()
    assert states.grad is not None
    assert layer.weight.grad is None


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_layers_of_the_same_formula_are_replaced_and_no_others(family: str) -> None:
    config: Any = AutoConfig.for_model(family, vocab_size=64, **(SIZES | FAMILIES[family]))
    model = AutoModelForCausalLM.from_config(config).eval()
    for name, value in model.named_parameters():
        if "norm" in name:
            nn.init.normal_(value, 1.0, 0.3)
    before, token = copy.deepcopy(model), torch.arange(9)[None]
    replace_norms(model)
    replaced = [name for name, layer in model.named_modules() if isinstance(layer, RMSNorm)]
    assert bool(replaced) == (family in ("llama", "mistral", "qwen2", "qwen3"))
    assert len(replaced) in (0, sum("RMSNorm" in type(layer).__name__ for layer in before.modules()))
    assert list(model.state_dict()) == list(before.state_dict())
    assert torch.equal(model(token).logits, before(token).logits)


def test_a_model_without_values_is_left_alone() -> None:
    with torch.device("meta"):
        model = nn.Sequential(LlamaRMSNorm(4))
    replace_norms(model)
    assert type(model[0]) is LlamaRMSNorm
