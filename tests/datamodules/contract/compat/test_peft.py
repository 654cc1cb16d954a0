"""PEFT still has what this project uses of it beyond its public interface."""

from __future__ import annotations

import inspect
import json

import pytest
import torch
from peft import LoraConfig, LoraModel, PrefixTuningConfig
from peft.tuners import lora
from torch import nn
from transformers import LlamaConfig

from datamodules.contract.compat.peft import completed_for, forget_layers, leave_casting_to_autocast, use_layer

MOVED = "PEFT has moved {}; mend datamodules/contract/compat/peft.py, or set an upper bound in pyproject.toml"


class Ours(lora.Linear):
    """A layer that PEFT is to put in."""


def tuned(config: LoraConfig) -> nn.Module:
    LoraModel(model := nn.Sequential(nn.Linear(3, 3)), config, "default")
    return model


def test_a_configuration_takes_our_layer_and_can_be_written_without_it() -> None:
    config = LoraConfig(target_modules=["0"], r=2)
    try:
        use_layer(config, nn.Linear, Ours)
    except AttributeError as error:
        pytest.fail(MOVED.format(error.name))
    assert type(tuned(config)[0]) is Ours, MOVED.format("_register_custom_module")  # type: ignore[index]
    forget_layers(config)
    assert config._custom_modules is None, MOVED.format("_custom_modules")
    assert (
        type(tuned(LoraConfig(**{k: v for k, v in config.to_dict().items() if k in ("r", "target_modules")}))[0])
        is lora.Linear
    )  # type: ignore[index]
    json.dumps({key: str(value) for key, value in config.to_dict().items()})


def test_a_layer_casts_its_input_until_it_is_told_not_to() -> None:
    model = tuned(LoraConfig(target_modules=["0"], r=2))
    layer: lora.Linear = model[0]  # type: ignore[index]
    half = torch.ones(1, 3, dtype=torch.bfloat16)
    assert layer._cast_input_dtype(half, torch.float32).dtype == torch.float32, MOVED.format("_cast_input_dtype")
    leave_casting_to_autocast(model)
    assert layer._cast_input_dtype(half, torch.float32).dtype == torch.bfloat16, MOVED.format(
        "cast_input_dtype_enabled"
    )


def test_a_prompt_configuration_is_completed_from_the_models() -> None:
    shape = LlamaConfig(hidden_size=12, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2)
    try:
        config = completed_for(PrefixTuningConfig(num_virtual_tokens=5), shape.to_dict())
    except AttributeError as error:
        pytest.fail(MOVED.format(error.name))
    assert (config.num_layers, config.num_attention_heads, config.token_dim) == (3, 2, 6), MOVED.format(
        "_prepare_prompt_learning_config"
    )
    assert inspect.isfunction(completed_for)
