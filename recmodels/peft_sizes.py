"""The option of each PEFT method that sets how much it trains, for a budget of parameters."""

from __future__ import annotations

from typing import Any

from peft import PeftConfig, PeftType

from datamodules.sources import InputError

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
"""Options that raise the number of trained parameters."""
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
        datamodules.sources.InputError: model.budget: IA3Config has no size that a budget could set; leave it out
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
    """The size that a method has.

    Example:
        >>> from peft import LoraConfig
        >>> size_of(LoraConfig(r=4))
        4
    """
    kind: Any = config.peft_type
    return int(getattr(config, SIZES[kind]))
