"""A budget of trained parameters sets the size of every method that has one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

import recmodels
from datamodules.contract.errors import InputError
from recmodels.methods.base import InstructionRecommender
from recmodels.methods.budget import nearest_size, parse_budget
from recmodels.methods.peft import PeftTuning
from recmodels.methods.peft_support import set_size, size_of

SIZED = [n for n in recmodels.__all__ if getattr(getattr(recmodels, n), "size_field", "")]


def build(name: str, folder: Path, **kwargs: object) -> InstructionRecommender:
    model: InstructionRecommender = getattr(recmodels, name)(backbone=str(folder), **kwargs)
    model.configure_model()
    return model


def trained(model: InstructionRecommender) -> int:
    return sum(value.numel() for value in model.trained().values())


@given(st.integers(1, 50), st.integers(0, 50), st.integers(1, 5000), st.integers(1, 60))
def test_the_nearest_size_is_found_as_by_trying_all(slope: int, start: int, wanted: int, largest: int) -> None:
    def count(size: int) -> int:
        if size > largest:
            raise InputError("too large")
        return start + slope * size

    expected = min(range(1, largest + 1), key=lambda size: (abs(count(size) - wanted), size))
    assert nearest_size(count, wanted) == expected


def test_the_sized_methods_are_those_that_issue_sizes() -> None:
    assert {"LoRATuning", "AdapterTuning", "PrefixTuning"} <= set(SIZED)


@pytest.mark.parametrize("name", SIZED)
def test_no_other_size_is_nearer_to_the_budget_and_the_achieved_number_is_recorded(
    name: str, tiny_causal: Path
) -> None:
    model = build(name, tiny_causal, budget="12%")

    total = sum(v.numel() for v in build("ZeroShot", tiny_causal).parameters())
    size, wanted = int(model.findings["budget_size"]), round(0.12 * total)
    assert model.findings["budget_parameters"] == wanted
    assert model.findings["budget_trained"] == trained(model)
    assert size > 1
    for other in (size - 1, size + 1):
        near = trained(build(name, tiny_causal, **{model.size_field: other}))
        assert abs(near - wanted) >= abs(trained(model) - wanted)


@pytest.mark.parametrize("name", SIZED)
def test_a_budget_draws_the_weights_that_the_size_itself_draws(name: str, tiny_causal: Path) -> None:
    torch.manual_seed(5)
    budgeted = build(name, tiny_causal, budget="12%")
    torch.manual_seed(5)
    sized = build(name, tiny_causal, **{budgeted.size_field: int(budgeted.findings["budget_size"])})

    for key, value in budgeted.trained().items():
        assert torch.equal(value, sized.trained()[key])


@pytest.mark.parametrize("budget", ["0%", "-1%", "100.1%", "0.1", "much", "nan%", ""])
def test_a_budget_that_is_no_share_is_refused(budget: str) -> None:
    with pytest.raises(InputError, match=r"model\.budget is .* above 0% and at most 100%"):
        parse_budget(budget)


@pytest.mark.parametrize("name", SIZED)
def test_a_budget_beside_a_size_is_refused(name: str) -> None:
    field = getattr(recmodels, name).size_field
    with pytest.raises(InputError, match=rf"model\.budget and model\.{field} both set the size"):
        getattr(recmodels, name)(budget="1%", **{field: 4})


@pytest.mark.parametrize("name", ["FullTuning", "ZeroShot"])
def test_a_method_without_a_size_takes_no_budget(name: str) -> None:
    with pytest.raises(InputError, match=f"{name} has no size"):
        getattr(recmodels, name)(budget="1%")


FOLDER = Path(__file__).resolve().parents[3] / "configs/model/peft"
UNSIZED = {
    "adamss",
    "beft",
    "c3a",
    "frod",
    "ia3",
    "ln_tuning",
    "osf",
    "randlora",
    "road",
    "supertuning",
    "trainable_tokens",
}


def peft_config(method: str) -> Any:
    given = yaml.safe_load((FOLDER / f"{method}.yaml").read_text())["model"]["init_args"]["peft_config"]
    return getattr(peft, given["class_path"])(**given.get("init_args", {}))


@pytest.mark.filterwarnings("ignore")  # PEFT's own words about its defaults
@pytest.mark.parametrize("method", sorted(path.stem for path in FOLDER.rglob("*.yaml")))
def test_every_method_of_peft_keeps_to_a_budget_or_says_that_it_has_no_size(method: str, tiny_causal: Path) -> None:
    if method in UNSIZED:
        with pytest.raises(InputError, match=r"^model\.budget: \w+ (has no size|trains (less|a number))"):
            PeftTuning(peft_config(method), backbone=str(tiny_causal), budget="10%")
        return
    model = PeftTuning(peft_config(method), backbone=str(tiny_causal), budget="10%")
    model.configure_model()
    assert model.findings["budget_trained"] == trained(model)
    assert model.findings["budget_size"] == size_of(model.peft_config)
    size, wanted = size_of(model.peft_config), model.findings["budget_parameters"]
    if method in ("dora", "prompt_tuning", "vera"):  # all sizes of these are one apart
        assert size > 1
        for other in (size - 1, size + 1):
            config = peft_config(method)
            set_size(config, other)
            near = PeftTuning(config, backbone=str(tiny_causal))
            near.configure_model()
            assert abs(trained(near) - wanted) >= abs(trained(model) - wanted)
