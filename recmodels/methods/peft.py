"""Every tuning method of the PEFT library, named by its configuration class."""

from __future__ import annotations

import copy
import logging
import warnings
from typing import Any

import torch
from peft import PeftConfig, PeftType
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from torch import Tensor, nn

from datamodules.contract.checkpoints import checksum_parameters
from datamodules.contract.errors import InputError
from recmodels.backbones.base import Backbone
from recmodels.backbones.causal import CausalBackbone, prove_tree_attention
from recmodels.backbones.quantization import check_quantised_layers, check_quantization, holds_four_bits
from recmodels.layers.fused import LowRankLinear
from recmodels.layers.reference import Reference
from recmodels.methods.base import InstructionRecommender
from recmodels.methods.budget import parse_budget
from recmodels.methods.export import prompt_parts
from recmodels.methods.peft_support import (
    check_config,
    check_layers,
    check_sized,
    check_targets,
    fill_targets,
    keeps_weights,
    promises_identity,
    set_size,
    size_of,
    why_not,
)
from recmodels.methods.virtual_tokens import add_virtual_tokens, is_virtual

log = logging.getLogger(__name__)


class PeftTuning(InstructionRecommender):
    """A method of the PEFT library (Mangrulkar et al. 2022, https://github.com/huggingface/peft).

    Its layers are put into the backbone, which goes through the prompt-tree engine as ever; virtual tokens become a
    beginning that all prompts share. What a method cannot do here is refused in one line.

    Args:
        peft_config: configuration class of the method with its options, such as `IA3Config`. Where it has target
            modules and names none, PEFT's own choice for the architecture is taken, or else what makes queries, keys
            and values; `all-linear` takes all.
        budget: share of the backbone's parameters to train, such as `0.1%`, in place of the configuration's own size
            (rank, virtual tokens, frequencies); what it trains is recorded.
        **kwargs: of `InstructionRecommender`.
    """

    def __init__(self, peft_config: PeftConfig, budget: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_config(peft_config)
        if budget is not None:
            check_sized(peft_config)
            self.budget = parse_budget(budget)
        self.peft_config = copy.deepcopy(peft_config)  # a budget changes it
        self._completed: Any = None  # the configuration of virtual tokens with what the backbone says
        self.identity_at_start = promises_identity(peft_config)
        self.trains_backbone = not keeps_weights(peft_config)
        if self.quantization:
            check_quantization(self.method, self.trains_backbone)

    def peft_parts(self) -> tuple[PeftConfig, dict[str, Tensor]]:
        """What a PEFT adapter folder holds; of virtual tokens, what their encoder made."""
        if not is_virtual(self.peft_config):
            return super().peft_parts()
        self.configure_model()
        return prompt_parts(self.backbone, self._completed)

    @property
    def method(self) -> str:
        """The method's name in PEFT."""
        return str(PeftType(self.peft_config.peft_type).value)

    def resize(self, size: int) -> None:
        """Takes the size of a number, of those that the method can have."""
        set_size(self.peft_config, size)

    def apply_to(self, backbone: Backbone) -> None:
        """Tunes within the budget, and records the size as the method's own option has it."""
        super().apply_to(backbone)
        if self.budget is not None:
            self.findings["budget_size"] = size_of(self.peft_config)

    def tune(self, backbone: Backbone) -> None:
        """Puts the method's layers or virtual tokens into the backbone.

        Raises:
            InputError: the method does not fit the backbone; with PEFT's reason.
        """
        config = copy.deepcopy(self.peft_config)  # PEFT fills in what is open
        if getattr(config, "random_seed", 0) is None:  # SHiRA's mask, which no checkpoint would hold
            config.random_seed = 0
        own = {name for name, _ in backbone.model.named_parameters()}
        # What a method draws and never trains must be the same when its checkpoint is loaded: it hangs on the seed alone.
        with torch.random.fork_rng(devices=()), warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            torch.default_generator.manual_seed(torch.initial_seed() % 2**63)
            try:
                if is_virtual(config):
                    self._completed = add_virtual_tokens(backbone, config)
                else:
                    self._put_in(backbone, config)
            except (ValueError, TypeError, KeyError, AttributeError, NotImplementedError, RuntimeError) as error:
                raise InputError(
                    f"{self.method} does not fit backbone {backbone.name!r} ({backbone.family}): {why_not(error)};"
                    " LoraConfig with target_modules=all-linear fits every family"
                ) from error
        if not any(value.requires_grad for value in backbone.model.parameters()):
            raise InputError(
                f"{self.method} does not fit backbone {backbone.name!r} ({backbone.family}): it finds no layer that it"
                " could train; LoraConfig with target_modules=all-linear fits every family"
            )
        for warning in told:
            log.info("%s: %s", self.method, warning.message)
        self.drawn = checksum_parameters(_drawn(backbone.model, own))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps the sum of what the method drew and does not train, too."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["instructrec"]["drawn"] = self.drawn

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses a checkpoint whose frozen random part is another.

        Raises:
            InputError: it was made with another seed.
        """
        super().on_load_checkpoint(checkpoint)
        if checkpoint["instructrec"].get("drawn") != self.drawn:
            raise InputError(
                f"the checkpoint's {self.method} drew other frozen values; use its run's own seed_everything and config"
            )

    def _put_in(self, backbone: Backbone, config: Any) -> None:
        made = PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type]
        check_targets(config, backbone)
        check_layers(config, backbone)
        fill_targets(config, backbone, made)
        if config.peft_type == PeftType.LORA and not holds_four_bits(backbone.model):
            config._register_custom_module({nn.Linear: LowRankLinear})
        given = {"default": config} if config.peft_type == PeftType.ADAPTION_PROMPT else config
        # Of tokens, a head that is tied to the embeddings is a part.
        changed = backbone.model if config.peft_type == PeftType.TRAINABLE_TOKENS else backbone.body
        self._tuner = Reference(made(changed, given, "default"))
        check_quantised_layers(backbone.model, self.method)
        for module in backbone.model.modules():
            if hasattr(module, "cast_input_dtype_enabled"):  # autocast does it
                setattr(module, "cast_input_dtype_enabled", False)  # noqa: B010  # PEFT types it as a submodule
        if isinstance(backbone, CausalBackbone):
            prove_tree_attention(backbone)  # a layer that mixes tokens on its own would not be exact


def _drawn(model: nn.Module, own: set[str]) -> list[tuple[str, torch.Tensor]]:
    """Frozen tensors that a method added to a model whose parameters were `own`."""
    frozen = [(name, value) for name, value in model.named_parameters() if not value.requires_grad]
    added = [(name, value) for name, value in frozen if name.replace(".base_layer.", ".") not in own]
    buffers = [(name, value) for name, value in model.named_buffers() if "rotary" not in name]
    return added + buffers
