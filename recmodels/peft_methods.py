"""What is known of PEFT's methods beside their configurations: what they promise, and what cannot run here."""

from __future__ import annotations

import difflib
from typing import Any

from peft import PeftConfig, PeftType

from datamodules.sources import InputError
from recmodels.backbone import Backbone

REFUSED = {
    PeftType.ADALORA: "its budget follows the training steps; use AdaLoRATuning",
    PeftType.CARTRIDGE: "it distils a long context into a cache beforehand; use PrefixTuningConfig",
    PeftType.CPT: "its virtual tokens stand for one fixed example and weigh the loss; use PromptTuningConfig",
    PeftType.LILY: "its router averages over all tokens of a batch, so that answers would leak into scores; use LoraConfig",
    PeftType.POLY: "it routes by the ids of several tasks, which a recommendation batch does not have; use LoraConfig",
    PeftType.SHADOW: "it runs a second network beside the model, which prompt trees do not reach; use LoraConfig",
    PeftType.XLORA: "it mixes adapters that were trained before; use LoraConfig",
}
"""Methods that cannot run here, each with the reason and what can be used instead."""

CHANGED_AT_START = {
    PeftType.C3A,
    PeftType.FOURIERFT,
    PeftType.MULTITASK_PROMPT_TUNING,
    PeftType.PREFIX_TUNING,
    PeftType.PROMPT_TUNING,
    PeftType.P_TUNING,
    PeftType.UNILORA,
    PeftType.VBLORA,
}
"""Methods whose first scores are not the untuned backbone's, by design."""

SPLIT = {PeftType.DEFT, PeftType.FROD, PeftType.HRA, PeftType.OSF, PeftType.PSOFT}
"""Methods that compute with a decomposition or a reflection of the frozen weight."""

FACTORED = ("pissa", "olora", "loftq", "corda", "eva", "orthogonal")
"""Initialisations of LoRA that move a part of the frozen weight into the trained factors."""


def check_config(config: PeftConfig) -> None:
    """Refuses configurations that cannot train here, before anything is loaded.

    Raises:
        InputError: the method cannot run here, or the configuration says that nothing trains.
    """
    name = type(config).__name__
    if config.peft_type in REFUSED:
        raise InputError(f"model.peft_config: {name} is not supported: {REFUSED[config.peft_type]}")
    if config.inference_mode:
        raise InputError("model.peft_config.inference_mode is true, so that nothing would train; leave it out")
    init = getattr(config, "init_lora_weights", None)
    if init in ("corda", "eva", "loftq", "lora_ga"):
        raise InputError(
            f"model.peft_config.init_lora_weights is {init!r}, which needs data or a quantised model beforehand; the"
            " nearest that works is 'pissa'"
        )
    if isinstance(init, str) and init.startswith("pissa_niter"):
        raise InputError(
            f"model.peft_config.init_lora_weights is {init!r}, whose approximation differs from run to run, so that a"
            " checkpoint would not come back; the nearest that works is 'pissa'"
        )


def promises_identity(config: PeftConfig) -> bool:
    """Whether a method's first scores are the untuned backbone's.

    Example:
        >>> from peft import IA3Config, PromptTuningConfig
        >>> promises_identity(IA3Config()), promises_identity(PromptTuningConfig(num_virtual_tokens=4))
        (True, False)
    """
    flags = [value for key, value in vars(config).items() if key.startswith("init_") and key.endswith("weights")]
    return config.peft_type not in CHANGED_AT_START and False not in flags


def keeps_weights(config: PeftConfig) -> bool:
    """Whether a method computes with the frozen weights as they are; if not, they must be held in float32.

    Example:
        >>> from peft import LoraConfig
        >>> keeps_weights(LoraConfig()), keeps_weights(LoraConfig(init_lora_weights="pissa"))
        (True, False)
    """
    init = getattr(config, "init_lora_weights", None)
    return not (config.peft_type in SPLIT or (isinstance(init, str) and init.startswith(FACTORED)))


def check_targets(config: Any, backbone: Backbone) -> None:
    """Refuses target names that no module of the backbone has, and ranks above a target's width.

    Raises:
        InputError: with the nearest name, or the width.
    """
    targets = getattr(config, "target_modules", None)
    if isinstance(targets, str) or not targets:
        return
    modules = dict(backbone.body.named_modules())
    last = sorted({name.rsplit(".", 1)[-1] for name in modules if name and not name.rsplit(".", 1)[-1].isdigit()})
    for target in sorted(targets):
        if not any(name == target or name.endswith(f".{target}") for name in modules):
            near = difflib.get_close_matches(target, last, n=1, cutoff=0)[0]
            raise InputError(
                f"model.peft_config.target_modules names {target!r}, which matches nothing in backbone"
                f" {backbone.name!r}; the nearest is {near!r}"
            )
    rank = getattr(config, "r", None)
    if not isinstance(rank, int) or config.peft_type in (PeftType.OFT, PeftType.MISS):
        return
    widths = [
        min(module.weight.shape)
        for name, module in backbone.linear_layers().items()
        if any(name == target or name.endswith(f".{target}") for target in targets)
    ]
    if widths and rank > min(widths):
        raise InputError(
            f"model.peft_config.r is {rank}, above the width {min(widths)} of the narrowest target; lower it"
        )
