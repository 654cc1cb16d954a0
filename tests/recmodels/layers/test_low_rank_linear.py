"""The low-rank layer computes what PEFT's does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import Linear
from torch import Tensor, nn

from recmodels.layers.fused import LowRankLinear


class Body(nn.Module):
    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 10, bias=bias), nn.Linear(10, 4, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.second(torch.tanh(self.first(x))))


def adapted(low_rank: bool, bias: bool = True, **options: Any) -> Body:
    torch.manual_seed(3)
    body = Body(bias).requires_grad_(False)
    config = LoraConfig(r=3, lora_alpha=7, target_modules=["first", "second"], **options)
    if low_rank:
        config._register_custom_module({nn.Linear: LowRankLinear})
    inject_adapter_in_model(config, body)
    torch.manual_seed(4)
    for name, value in body.named_parameters():
        if value.requires_grad:
            assert "lora_" in name
            nn.init.normal_(value)
    return body


def results(body: Body, x: Tensor) -> list[Tensor]:
    made = body(x)
    trained = [value for value in body.parameters() if value.requires_grad]
    return [made, *torch.autograd.grad(made.square().sum(), [x, *trained])]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 6), (2, 5, 6)])
def test_values_and_gradients_equal_pefts(bias: bool, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, requires_grad=True, dtype=torch.float64)
    mine, pefts = adapted(low_rank=True, bias=bias).double(), adapted(low_rank=False, bias=bias).double()
    assert type(mine.first) is LowRankLinear
    assert type(pefts.first) is Linear
    assert list(mine.state_dict()) == list(pefts.state_dict())
    for one, other in zip(results(mine, x), results(pefts, x), strict=True):
        torch.testing.assert_close(one, other)


def test_the_input_of_the_first_layer_needs_no_gradient() -> None:
    body = adapted(low_rank=True)
    body(torch.randn(5, 6)).sum().backward()
    assert all(value.grad is not None for value in body.parameters() if value.requires_grad)


@pytest.mark.parametrize("options", [{"lora_dropout": 0.5}, {"use_dora": True}, {"lora_bias": True}])
def test_what_is_not_plain_goes_pefts_own_way(options: dict[str, Any]) -> None:
    x = torch.randn(5, 6, requires_grad=True)
    mine, pefts = adapted(low_rank=True, **options), adapted(low_rank=False, **options)
    for body in (mine, pefts):
        torch.manual_seed(5)
        body.train()
    found = []
    for body in (mine, pefts):
        torch.manual_seed(6)
        found.append(results(body, x))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_merged_and_disabled_layers_are_pefts(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(5, 6)
    body = adapted(low_rank=True)
    expected, layer = body(x), body.first
    monkeypatch.setattr("recmodels.layers.fused._LowRank.apply", lambda *_: pytest.fail("the update would count twice"))
    layer.merge()  # type: ignore[operator]
    body.second.merge()  # type: ignore[operator]
    torch.testing.assert_close(body(x), expected)
    layer.unmerge()  # type: ignore[operator]
    body.second.unmerge()  # type: ignore[operator]
    for each in (layer, body.second):
        each.enable_adapters(False)  # type: ignore[operator]
    assert not torch.equal(body(x), expected)


def test_under_autocast_the_result_has_the_frozen_layers_type() -> None:
    body = adapted(low_rank=True)
    for layer in (body.first, body.second):
        layer.get_base_layer().bfloat16()  # type: ignore[operator]
    with torch.autocast("cpu", torch.bfloat16):
        made = body(torch.randn(5, 6).bfloat16())
    assert made.dtype == torch.bfloat16
    made.float().sum().backward()
    assert all(value.grad.dtype == torch.float32 for value in body.parameters() if value.grad is not None)
