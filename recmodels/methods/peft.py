"""Every tuning method of the PEFT library, named by its configuration class."""

from __future__ import annotations

import copy
from typing import Any

from peft import PeftConfig, PeftType
from torch import Tensor

from datamodules.contract.checkpoints import checksum_parameters
from datamodules.contract.errors import InputError
from recmodels.backbones.base import Backbone
from recmodels.backbones.quantization import check_quantization
from recmodels.methods.base import InstructionRecommender
from recmodels.methods.budget import parse_budget
from recmodels.methods.export import prompt_parts
from recmodels.methods.peft_support import (
    check_config,
    check_sized,
    drawn_values,
    fitting,
    keeps_weights,
    promises_identity,
    put_in,
    set_size,
    size_of,
)
from recmodels.methods.virtual_tokens import add_virtual_tokens, is_virtual


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
        self.identity_at_start, self.trains_backbone = promises_identity(peft_config), not keeps_weights(peft_config)
        if self.quantization:
            check_quantization(self.method, self.trains_backbone)

    def peft_parts(self) -> tuple[PeftConfig, dict[str, Tensor]]:
        """Returns what a PEFT adapter folder holds; of virtual tokens, what their encoder made."""
        self.configure_model()
        virtual = is_virtual(self.peft_config)
        return prompt_parts(self.backbone, self._completed) if virtual else super().peft_parts()

    @property
    def method(self) -> str:
        """The method's name in PEFT."""
        return str(PeftType(self.peft_config.peft_type).value)

    def resize(self, size: int) -> None:
        """Takes the size of a number, of those that the method can have."""
        set_size(self.peft_config, size)

    def apply_to(self, backbone: Backbone) -> None:
        """Tunes within the budget, whose size is recorded as the method's own option has it."""
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
        before = {name for name, _ in backbone.model.named_parameters()}
        with fitting(self.method, backbone):
            if is_virtual(config):
                self._completed = add_virtual_tokens(backbone, config)
            else:
                self._tuner = put_in(backbone, config)
        self.drawn = checksum_parameters(drawn_values(backbone.model, before))

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
            drew = f"the checkpoint's {self.method} drew other frozen values"
            raise InputError(f"{drew}; use its run's own seed_everything and config")
