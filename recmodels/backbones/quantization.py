"""Frozen backbones held in four bits (QLoRA, Dettmers et al. 2023, arXiv 2305.14314), through bitsandbytes."""

from __future__ import annotations

import importlib.util
from typing import Any, Literal, cast

import torch
from torch import nn

from datamodules.contract.compat.bitsandbytes import allow_warnings
from datamodules.contract.errors import InputError

Quantization = Literal["4bit"]


def check_quantization(method: str, trains_backbone: bool, weights: str = "pretrained") -> None:
    """Refuses four bits where they cannot be had or where the weights themselves are needed; loads nothing.

    Raises:
        InputError: with what would work.

    Example:
        >>> check_quantization("FullTuning", True)
        Traceback (most recent call last):
        ...
        datamodules.contract.errors.InputError: model.quantization is '4bit', and FullTuning needs the weights themselves, which \
four bits do not hold; use LoRATuning, AdapterTuning or PrefixTuning, or leave model.quantization out
    """
    if trains_backbone:
        raise InputError(
            f"model.quantization is '4bit', and {method} needs the weights themselves, which four bits do not hold; use"
            " LoRATuning, AdapterTuning or PrefixTuning, or leave model.quantization out"
        )
    if weights == "random":
        raise InputError(
            "model.weights is 'random': only pretrained weights are held in four bits; leave one of them out"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(
            "model.quantization is '4bit', which needs bitsandbytes: pip install 'instructrec[4bit]', or leave"
            " model.quantization out"
        )


def four_bits(precision: torch.dtype) -> Any:
    """What tells transformers to hold linear layers as NF4, their scales quantised again; the head stays as it is."""
    from transformers import BitsAndBytesConfig

    allow_warnings()
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=precision,
    )


def keep_packing(model: nn.Module) -> None:
    """Leaves four-bit weights as they were packed.

    On a processor with bfloat16 units bitsandbytes 0.50 packs them anew in evaluation, and fails at our tests' small layers.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> layer.support_avx512bf16_for_cpu = True
        >>> keep_packing(layer)
        >>> layer.support_avx512bf16_for_cpu
        False
    """
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            cast(Any, layer).support_avx512bf16_for_cpu = False


def release_file(model: nn.Module) -> None:
    """Copies what was not quantised into memory of its own.

    Until then these weights are views of the mapped file, and one view keeps all of its pages resident: those of the
    originals, too, that have been quantised.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> address = layer.weight.data_ptr()
        >>> release_file(layer)
        >>> layer.weight.data_ptr() == address
        False
    """
    for value in model.parameters():
        if value.is_floating_point():  # packed ones are whole numbers
            value.data = value.data.clone()


def is_quantised(module: nn.Module) -> bool:
    """Returns whether a layer holds its weight in four bits.

    Example:
        >>> is_quantised(nn.Linear(2, 2))
        False
    """
    return type(module).__name__ == "Linear4bit"


def holds_four_bits(model: nn.Module) -> bool:
    """Returns whether any layer of a model holds its weight in four bits.

    Example:
        >>> holds_four_bits(nn.Sequential(nn.Linear(2, 2)))
        False
    """
    return any(is_quantised(module) for module in model.modules())


def check_quantised_layers(model: nn.Module, method: str) -> None:
    """Refuses layers of PEFT that take a quantised weight for a plain one.

    Raises:
        InputError: PEFT has no such layer for four bits.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    if any(is_quantised(layer.get_base_layer()) and "bnb" not in type(layer).__module__ for layer in layers):
        raise InputError(
            f"model.quantization is '4bit', and PEFT's {method} knows no four-bit layers; use LoraConfig or leave"
            " model.quantization out"
        )
