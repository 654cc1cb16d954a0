"""Partial tuning: some of the backbone's own parameters train, all others stay as they are."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from datamodules.sources import InputError
from recmodels.backbone import Backbone
from recmodels.freezing import Part, parameters_of, unfreezing_order
from recmodels.instruction import InstructionRecommender


class PartialTuning(InstructionRecommender):
    """The classical freezing strategies (Howard and Ruder 2018, arXiv 1801.06146; BitFit, arXiv 2106.10199).

    Args:
        part: what trains: `top_layers`, the last blocks and the norm behind them; `head`, which is a copy where the
            backbone ties it to its embeddings, so that these stay; `embeddings` (with a head that is tied to them);
            `bias`; `norms`, weights and biases of every normalisation; or `gradual`, everything but the head and
            embeddings, the last block first and one more after another.
        layers: under `top_layers`, how many of each stack.
        pace: under `gradual`, whether one more block trains with each `epoch`, or at equal `steps`.
        unfreeze_until: under `gradual` by steps, share of the training after which all blocks train.
        **kwargs: of `InstructionRecommender`.
    """

    trains_backbone: ClassVar[bool] = True
    identity_at_start: ClassVar[bool] = True

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

    def tune(self, backbone: Backbone) -> None:
        """Unfreezes the part; under `gradual` all of it, until training begins.

        Raises:
            InputError: the backbone has no such part, or fewer layers.
        """
        self.waiting = unfreezing_order(backbone) if self.part == "gradual" else []
        for value in parameters_of(backbone, self.part, self.layers):
            value.requires_grad_(True)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Freezes the blocks whose turn has not come."""
        self.thaw(self.trainer)

    def on_train_end(self) -> None:
        """Leaves all that trains unfrozen."""
        for value in self.trained().values():
            value.requires_grad_(True)

    def thaw(self, trainer: Any) -> None:
        """Freezes what waits, at this point of a training: a block without a gradient is left alone by optimisers."""
        if not self.waiting:
            return
        if self.pace == "epoch":
            open_now = trainer.current_epoch + 1
        else:
            share = trainer.global_step / (self.unfreeze_until * int(trainer.estimated_stepping_batches))
            open_now = 1 + int(share * len(self.waiting))
        for number, block in enumerate(self.waiting):
            for value in block:
                value.requires_grad_(number < open_now)
