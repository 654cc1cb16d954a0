"""What this project uses of PEFT beyond its public interface (0.21)."""

from __future__ import annotations

from typing import Any

from peft.utils import other
from torch import nn


def use_layer(config: Any, plain: type[nn.Module], replacement: type[nn.Module]) -> None:
    """Has a LoRA configuration put in a layer of ours for a plain one: `LoraConfig._register_custom_module`."""
    config._register_custom_module({plain: replacement})


def forget_layers(config: Any) -> None:
    """Takes that back (`_custom_modules`), so that the configuration can be written as JSON."""
    if getattr(config, "_custom_modules", None):
        config._custom_modules = None


def leave_casting_to_autocast(model: nn.Module) -> None:
    """Switches off PEFT's own cast of inputs (`cast_input_dtype_enabled`), which doubles the traffic of memory."""
    for module in model.modules():
        if hasattr(module, "cast_input_dtype_enabled"):
            setattr(module, "cast_input_dtype_enabled", False)  # noqa: B010  # PEFT types it as a submodule


def completed_for(config: Any, model_config: Any) -> Any:
    """Fills in a prompt-learning configuration from a model's: `peft.utils.other._prepare_prompt_learning_config`."""
    return other._prepare_prompt_learning_config(config, model_config)
