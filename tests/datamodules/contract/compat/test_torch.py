"""The private names of torch are still there, and do what they are used for."""

from __future__ import annotations

import pytest
import torch

from datamodules.contract.compat.torch import allow_recompiling, has_bfloat16_units, largest_magnitudes


def test_torch_has_not_moved_what_is_used_of_it() -> None:
    for owner, name in [
        (torch, "_foreach_norm"),
        (torch.cpu, "_is_avx512_bf16_supported"),
        (torch.cpu, "_is_amx_tile_supported"),
        (torch._dynamo.config, "recompile_limit"),
        (torch._dynamo.config, "accumulated_recompile_limit"),
    ]:
        assert hasattr(owner, name), f"torch {torch.__version__} has moved {name}: mend datamodules/contract/compat"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_survives_the_largest_magnitude(value: float) -> None:
    largest = largest_magnitudes([torch.ones(5), torch.tensor([[-7.0, 2.0]]), torch.tensor([1.0, value, 3.0])])
    assert largest[:2].tolist() == [1.0, 7.0]
    assert torch.isfinite(largest).tolist() == [True, True, False]


def test_limits_are_raised_and_never_lowered(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = torch._dynamo.config
    with limits.patch(recompile_limit=8, accumulated_recompile_limit=2000):  # type: ignore[no-untyped-call]
        allow_recompiling(256, 1024)
        assert (limits.recompile_limit, limits.accumulated_recompile_limit) == (256, 2000)


def test_the_processor_answers() -> None:
    assert has_bfloat16_units() in (True, False)
