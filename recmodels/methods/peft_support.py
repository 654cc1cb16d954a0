"""What is known of PEFT's methods beside their configurations: what they promise, and what cannot run here."""

from __future__ import annotations

import difflib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftConfig, PeftType
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils.constants import TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING as IA3_TARGETS
from torch import Tensor, nn

from datamodules.contract.compat.peft import leave_casting_to_autocast, use_layer
from datamodules.contract.errors import InputError
from recmodels.backbones.base import Backbone, widths
from recmodels.backbones.causal import CausalBackbone, prove_tree_attention
from recmodels.backbones.quantization import check_quantised_layers, holds_four_bits
from recmodels.layers.fused import LowRankLinear
from recmodels.layers.reference import Reference

log = logging.getLogger(__name__)

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
    """Returns whether a method's first scores are the untuned backbone's.

    Example:
        >>> from peft import IA3Config, PromptTuningConfig
        >>> promises_identity(IA3Config()), promises_identity(PromptTuningConfig(num_virtual_tokens=4))
        (True, False)
    """
    flags = [value for key, value in vars(config).items() if key.startswith("init_") and key.endswith("weights")]
    return config.peft_type not in CHANGED_AT_START and False not in flags


def keeps_weights(config: PeftConfig) -> bool:
    """Returns whether a method computes with the frozen weights as they are; if not, they must be held in float32.

    Example:
        >>> from peft import LoraConfig
        >>> keeps_weights(LoraConfig()), keeps_weights(LoraConfig(init_lora_weights="pissa"))
        (True, False)
    """
    init = getattr(config, "init_lora_weights", None)
    return not (config.peft_type in SPLIT or (isinstance(init, str) and init.startswith(FACTORED)))


def fill_targets(config: Any, backbone: Backbone) -> None:
    """Names the layers that a method changes, where neither the user nor PEFT does so for the architecture.

    These are the layers that make queries, keys and values, or for LN tuning the norms.
    """
    tuner = PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type]
    if getattr(config, "target_modules", "") is not None:
        return
    known = IA3_TARGETS if config.peft_type == PeftType.IA3 else getattr(tuner, "target_module_mapping", None)
    if not known or backbone.family in known:  # where there is no table, PEFT finds the layers by itself
        return
    if config.peft_type == PeftType.LN_TUNING:
        modules = backbone.body.named_modules()
        config.target_modules = [name for name, module in modules if "norm" in type(module).__name__.lower()]
        return
    config.target_modules = attention_inputs(backbone)
    if config.peft_type == PeftType.IA3:
        config.feedforward_modules = set()


def inject(backbone: Backbone, config: Any) -> Reference[Any]:
    """Puts a method's layers into a backbone, as its configuration says to the end; returns PEFT's tuner over it."""
    if config.peft_type == PeftType.LORA and not holds_four_bits(backbone.model):
        use_layer(config, nn.Linear, LowRankLinear)
    given = {"default": config} if config.peft_type == PeftType.ADAPTION_PROMPT else config
    # Of tokens, a head that is tied to the embeddings is a part.
    changed = backbone.model if config.peft_type == PeftType.TRAINABLE_TOKENS else backbone.body
    tuner: Any = PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type]
    reference = Reference(tuner(changed, given, "default"))
    leave_casting_to_autocast(backbone.model)
    return reference


def put_in(backbone: Backbone, config: Any) -> Reference[Any]:
    """Checks a configuration of any of PEFT's methods against a backbone, fills it in, and injects it.

    Raises:
        InputError: the method cannot change these layers as it should.
    """
    check_targets(config, backbone)
    check_layers(config, backbone)
    fill_targets(config, backbone)
    tuner = inject(backbone, config)
    check_quantised_layers(backbone.model, str(PeftType(config.peft_type).value))
    if isinstance(backbone, CausalBackbone):
        prove_tree_attention(backbone)  # a layer that mixes tokens on its own would not be exact
    return tuner


@contextmanager
def fitting(method: str, backbone: Backbone) -> Iterator[None]:
    """Around what PEFT changes in a backbone: its reasons in one line, its warnings in the log, its draws repeated.

    What a method draws and never trains must be the same when its checkpoint is loaded: it hangs on the seed alone.

    Raises:
        InputError: the method does not fit the backbone; with PEFT's reason.
    """
    what = f"{method} does not fit backbone {backbone.name!r} ({backbone.family})"
    otherwise = "LoraConfig with target_modules=all-linear fits every family"
    with torch.random.fork_rng(devices=()), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.default_generator.manual_seed(torch.initial_seed() % 2**63)
        try:
            yield
        except (ValueError, TypeError, KeyError, AttributeError, NotImplementedError, RuntimeError) as error:
            raise InputError(f"{what}: {why_not(error)}; {otherwise}") from error
    if not any(value.requires_grad for value in backbone.model.parameters()):
        raise InputError(f"{what}: it finds no layer that it could train; {otherwise}")
    for warning in caught:
        log.info("%s: %s", method, warning.message)


def drawn_values(model: nn.Module, before: set[str]) -> list[tuple[str, Tensor]]:
    """Returns the frozen tensors that a method added to a model whose parameters were named `before`."""
    frozen = [(name, value) for name, value in model.named_parameters() if not value.requires_grad]
    added = [(name, value) for name, value in frozen if name.replace(".base_layer.", ".") not in before]
    buffers = [(name, value) for name, value in model.named_buffers() if "rotary" not in name]
    return added + buffers


def attention_inputs(backbone: Backbone) -> set[str]:
    """Returns the last names of the linear layers that read a block's hidden states in its attention.

    Raises:
        InputError: the architecture names its layers otherwise.
    """
    inputs = set()
    for layer in backbone.layers():
        last = backbone.output_layer(layer, "attention")[1]
        names = [n.rpartition(".") for n, module in layer.named_modules() if widths(module)[0] == backbone.width]
        inputs |= {name for parent, _, name in names if "att" in parent.lower() and name != last}
    return inputs


def check_layers(config: Any, backbone: Backbone) -> None:
    """Tells PEFT of layers whose weights lie the other way round (GPT-2's), and refuses what does not mind it.

    Raises:
        InputError: the method would factor such weights as if they lay as usual.
    """
    if not any(type(layer).__name__ == "Conv1D" for layer in backbone.linear_layers().values()):
        return
    if hasattr(config, "fan_in_fan_out"):
        config.fan_in_fan_out = True
    if getattr(config, "init_lora_weights", None) in ("olora", "orthogonal"):
        raise InputError(
            f"model.peft_config.init_lora_weights is {config.init_lora_weights!r}, which PEFT does for plain linear"
            f" layers only, and those of backbone {backbone.name!r} ({backbone.family}) are Conv1D; use 'pissa'"
        )


def why_not(error: Exception) -> str:
    """Returns PEFT's reason for refusing a backbone, in few words.

    Example:
        >>> why_not(ValueError("Target module Conv1D(nf=96, nx=32) is not supported."))
        'its linear layers are Conv1D, which PEFT does not take here'
    """
    reason = " ".join(str(error).split())
    if "Conv1D" in reason:  # GPT-2's
        return "its linear layers are Conv1D, which PEFT does not take here"
    return reason[:300].rstrip(".")


def check_targets(
    config: Any,
    backbone: Backbone,
    names_option: str = "model.peft_config.target_modules",
    rank_option: str = "model.peft_config.r",
) -> None:
    """Refuses target names that no module of the backbone has, tokens beyond its words, ranks above a target's width.

    Raises:
        InputError: with the nearest name, the number of words, or the width.
    """
    words = backbone.model.get_input_embeddings().weight.shape[0]
    strange = [token for token in getattr(config, "token_indices", ()) if not 0 <= token < words]
    if strange:
        raise InputError(
            f"model.peft_config.token_indices names {strange[0]}; the tokens of backbone {backbone.name!r} are 0 to"
            f" {words - 1}"
        )
    targets = getattr(config, "target_modules", None)
    if isinstance(targets, str) or not targets:
        return
    head = backbone.model.get_output_embeddings()  # logits are computed from its weight, past any layer around it
    modules = {name: module for name, module in backbone.body.named_modules() if head is None or module is not head}
    last = sorted({name.rsplit(".", 1)[-1] for name in modules if name and not name.rsplit(".", 1)[-1].isdigit()})
    for target in sorted(targets):
        if not any(name == target or name.endswith(f".{target}") for name in modules):
            near = difflib.get_close_matches(target, last, n=1, cutoff=0)[0]
            raise InputError(
                f"{names_option} names {target!r}, which matches nothing in backbone"
                f" {backbone.name!r}; the nearest is {near!r}"
            )
    rank = getattr(config, "r", None)
    if not isinstance(rank, int) or config.peft_type in (PeftType.OFT, PeftType.MISS):
        return
    narrow = [
        min(widths(module))
        for name, module in backbone.linear_layers().items()
        if any(name == target or name.endswith(f".{target}") for target in targets)
    ]
    if narrow and rank > min(narrow):
        raise InputError(
            f"{rank_option} is {rank}, above the width {min(narrow)} of the narrowest target; at most"
            f" {min(narrow)} works"
        )


RANKED = (
    *(PeftType.LORA, PeftType.LOHA, PeftType.LOKR, PeftType.DELORA, PeftType.DEFT, PeftType.HIRA, PeftType.HRA),
    *(PeftType.GLORA, PeftType.GRALORA, PeftType.MISS, PeftType.PEANUT, PeftType.PSOFT, PeftType.PVERA),
    *(PeftType.SHIRA, PeftType.VERA),
)
SIZES = dict.fromkeys(RANKED, "r") | {
    PeftType.ADAPTION_PROMPT: "adapter_len",
    PeftType.BOFT: "boft_block_size",
    PeftType.FOURIERFT: "n_frequency",
    PeftType.MULTITASK_PROMPT_TUNING: "num_virtual_tokens",
    PeftType.OFT: "oft_block_size",
    PeftType.PREFIX_TUNING: "num_virtual_tokens",
    PeftType.PROMPT_TUNING: "num_virtual_tokens",
    PeftType.P_TUNING: "encoder_hidden_size",
    PeftType.TINYLORA: "u",
    PeftType.UNILORA: "theta_d_length",
    PeftType.VBLORA: "num_vectors",
    PeftType.WAVEFT: "n_frequency",
}
"""Options that raise the number of trained parameters, which a budget sets."""
POWERS = (PeftType.BOFT, PeftType.OFT)
"""Methods whose blocks must divide the layers' widths: powers of two are tried."""
UNSUITED = {
    PeftType.ADAMSS: "trains a number that hangs on the weights; set its subspace_rank instead of a budget",
    PeftType.C3A: "trains less when its block_size grows; set that instead of a budget",
    PeftType.RANDLORA: "trains less when its r grows; set that instead of a budget",
}
"""Methods with a size that cannot be looked for, each with the reason."""


def check_sized(config: PeftConfig) -> None:
    """Refuses a budget for a method without an option that could be set to it.

    Raises:
        InputError: with the reason.

    Example:
        >>> from peft import IA3Config
        >>> check_sized(IA3Config())
        Traceback (most recent call last):
            ...
        datamodules.contract.errors.InputError: model.budget: IA3Config has no size that a budget could set; leave it out
    """
    name = type(config).__name__
    kind: Any = config.peft_type
    if kind in UNSUITED:
        raise InputError(f"model.budget: {name} {UNSUITED[kind]}")
    if kind not in SIZES:
        raise InputError(f"model.budget: {name} has no size that a budget could set; leave it out")


def set_size(config: PeftConfig, number: int) -> None:
    """Gives a method its size by number: 1, 2, 3, ... are the sizes that it can have, rising.

    Example:
        >>> from peft import OFTConfig
        >>> config = OFTConfig()
        >>> set_size(config, 4)
        >>> config.oft_block_size
        16
    """
    kind: Any = config.peft_type
    step = int(getattr(config, "gralora_k", 1)) if kind == PeftType.GRALORA else 1
    setattr(config, SIZES[kind], 2**number if kind in POWERS else step * number)
    if kind == PeftType.OFT:
        setattr(config, "r", 0)  # noqa: B010  # the number of blocks, which then follows


def size_of(config: PeftConfig) -> int:
    """Returns the size that a method has.

    Example:
        >>> from peft import LoraConfig
        >>> size_of(LoraConfig(r=4))
        4
    """
    kind: Any = config.peft_type
    return int(getattr(config, SIZES[kind]))
