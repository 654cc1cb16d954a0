"""Partial tuning: some of the backbone's own parameters train, all others stay as they are."""

from __future__ import annotations

import logging
from typing import Any, Literal, cast

from torch import nn

from datamodules.contract.errors import InputError
from recmodels.backbones.base import Backbone
from recmodels.methods.base import InstructionRecommender

Part = Literal["top_layers", "head", "embeddings", "bias", "norms", "gradual", "items"]

log = logging.getLogger(__name__)


def parameters_of(backbone: Backbone, part: Part, layers: int) -> list[nn.Parameter]:
    """Returns the parameters of a part; a head that is tied to the embeddings is parted from them first.

    Returns:
        Empty for the head of an encoder, whose tagger trains in any case, and for vectors of items, which are beside it.

    Raises:
        InputError: the backbone has no such part, or fewer layers.
    """
    if part == "items":
        return []
    if part == "top_layers":
        return _top_layers(backbone, layers)
    if part == "gradual":
        return [value for block in unfreezing_order(backbone) for value in block]
    if part == "head":
        return _head(backbone)
    if part == "embeddings":
        words = backbone.model.get_input_embeddings().weight
        if backbone.output_embeddings is not None and backbone.output_embeddings.weight is words:
            log.info("the head of backbone %r is its embeddings: both train", backbone.name)
        return [words]
    if part == "bias":
        values = [value for name, value in backbone.model.named_parameters() if name.endswith(".bias")]
        advice = "norms"
    else:
        values = [value for module in backbone.model.modules() if _is_norm(module) for value in module.parameters()]
        advice = "bias"
    if not values:
        raise InputError(
            f"model.part is {part!r}, and backbone {backbone.name!r} ({backbone.family}) has none; use {advice!r}"
        )
    return values


def unfreezing_order(backbone: Backbone) -> list[list[nn.Parameter]]:
    """Parameters block by block, from the one nearest to the output; the norms behind the stacks come with the first."""
    blocks = [list(layer.parameters()) for layer in reversed(backbone.layers())]
    blocks[0] += _norms_behind(backbone)
    return blocks


def _top_layers(backbone: Backbone, layers: int) -> list[nn.Parameter]:
    stacks = backbone.stacks()
    if layers > min(map(len, stacks)):
        there = " and ".join(str(len(stack)) for stack in stacks)
        raise InputError(f"model.layers is {layers}, and backbone {backbone.name!r} has {there}; lower it")
    top = [layer for stack in stacks for layer in stack[-layers:]]
    return [value for layer in top for value in layer.parameters()] + _norms_behind(backbone)


def _head(backbone: Backbone) -> list[nn.Parameter]:
    head: Any = backbone.output_embeddings
    if head is None:
        return []
    model = backbone.model
    if head.weight is model.get_input_embeddings().weight:
        config = model.config.get_text_config()
        if hasattr(model, "get_decoder") and config.is_encoder_decoder and backbone.family in ("t5", "umt5"):
            # Whether the states are scaled before the head hung on the tie; it stays as it is.
            scaled = getattr(config, "scale_decoder_outputs", config.tie_word_embeddings)
            config.scale_decoder_outputs = scaled
        copy = nn.Linear(head.in_features, head.out_features, bias=head.bias is not None, device=head.weight.device)
        copy.load_state_dict(head.state_dict())
        model.set_output_embeddings(copy.requires_grad_(False).to(head.weight.dtype))
        config.tie_word_embeddings = model.config.tie_word_embeddings = False
        log.info("the head of backbone %r is its embeddings: a copy trains, the embeddings stay", backbone.name)
        head = copy
    return list(cast(nn.Module, head).parameters())


def _norms_behind(backbone: Backbone) -> list[nn.Parameter]:
    inside = {id(module) for layer in backbone.layers() for module in layer.modules()}
    outside = [(n, m) for n, m in backbone.model.named_modules() if _is_norm(m) and id(m) not in inside]
    return [value for name, module in outside if "embed" not in name for value in module.parameters()]


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()


class PartialTuning(InstructionRecommender):
    """The classical freezing strategies (Howard and Ruder 2018, arXiv 1801.06146; BitFit, arXiv 2106.10199).

    Args:
        part: what trains: `top_layers`, the last blocks and the norm behind them; `head`, which is a copy where the
            backbone ties it to its embeddings, so that these stay; `embeddings` (with a head that is tied to them);
            `bias`; `norms`, weights and biases of every normalisation; `gradual`, everything but the head and
            embeddings, the last block first and one more after another; or `items`, nothing of the backbone, but the
            vectors of items that are tokens.
        layers: under `top_layers`, how many of each stack.
        pace: under `gradual`, whether one more block trains with each `epoch`, or at equal `steps`.
        unfreeze_until: under `gradual` by steps, share of the training after which all blocks train.
        **kwargs: of `InstructionRecommender`.
    """

    trains_backbone = True
    identity_at_start = True

    def __init__(
        self,
        part: Part = "top_layers",
        layers: int = 2,
        pace: Literal["epoch", "steps"] = "steps",
        unfreeze_until: float = 0.5,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if layers < 1:
            raise InputError(f"model.layers is {layers}, must be at least 1")
        if not 0 < unfreeze_until <= 1:
            raise InputError(f"model.unfreeze_until is {unfreeze_until}, must be a share of the steps, above 0 to 1")
        self.part, self.layers, self.pace, self.unfreeze_until = part, layers, pace, unfreeze_until

    def configure_model(self) -> None:
        """Loads the backbone once and unfreezes the part.

        Raises:
            InputError: `items` are to train, and they are no tokens.
        """
        if self.part == "items" and self.item_tokens is None:
            raise InputError("model.part is 'items', and items have no vectors; use --data.items Token")
        super().configure_model()

    def tune(self, backbone: Backbone) -> None:
        """Unfreezes the part; under `gradual` all of it, until training begins.

        Raises:
            InputError: the backbone has no such part, or fewer layers.
        """
        self.frozen_blocks = unfreezing_order(backbone) if self.part == "gradual" else []
        for value in parameters_of(backbone, self.part, self.layers):
            value.requires_grad_(True)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Freezes the blocks whose turn has not come."""
        self.update_frozen(self.trainer)

    def update_frozen(self, trainer: Any) -> None:
        """Freezes the blocks whose turn has not come: optimisers leave what has no gradient alone."""
        if not self.frozen_blocks:
            return
        if self.pace == "epoch":
            open_now = trainer.current_epoch + 1
        else:
            share = trainer.global_step / (self.unfreeze_until * int(trainer.estimated_stepping_batches))
            open_now = 1 + int(share * len(self.frozen_blocks))
        for number, block in enumerate(self.frozen_blocks):
            for value in block:
                value.requires_grad_(number < open_now)
