"""Adapters of a new run that stand on those of earlier ones."""

from __future__ import annotations

import os
from typing import Any

import torch

from datamodules.sources import InputError
from recmodels.adapter_levels import levels_of, put_level
from recmodels.backbone import Backbone
from recmodels.instruction import InstructionRecommender
from recmodels.stack_files import KEY, Stack, check_backbone, levels_below, plain_level, read_stack
from recmodels.training import OWN_CONFIG


class StackedTuning(InstructionRecommender):
    """A method whose checkpoints hold bottleneck adapters, its own and frozen ones below.

    Args:
        stack_on: an earlier AdapterTuning run of the same backbone: its folder, its checkpoint, or the folder that
            `export` made. Its adapters are put in frozen, with their own settings and no dropout, and the new ones stand
            behind them (MAD-X, Pfeiffer et al. 2020, arXiv 2005.00052). The checkpoint keeps both: once it is written,
            the earlier run is not needed. Null stands on the backbone.
        **kwargs: of `InstructionRecommender`.
    """

    def __init__(self, stack_on: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.stack_on = stack_on
        self._stack: Stack | None = None
        if stack_on is not None and os.path.exists(os.path.expanduser(stack_on)):
            self._stack = self._read(stack_on)  # one that is gone may come with a checkpoint

    @property
    def level(self) -> int:
        """How many levels of adapters stand below the new ones."""
        return len(self._stack.levels) if self._stack is not None else 0

    def _read(self, source: str) -> Stack:
        stack = read_stack(source)
        check_backbone(stack, source, self.backbone_name)
        return stack

    def configure_model(self) -> None:
        """Reads what the new adapters stand on, and then loads the backbone.

        Raises:
            InputError: there is nothing to stand on.
        """
        if self.stack_on is not None and self._stack is None:
            self._stack = self._read(self.stack_on)
        super().configure_model()

    def lay_ground(self, backbone: Backbone) -> None:
        """Puts the earlier adapters in.

        Raises:
            InputError: they do not belong to these weights.
        """
        if self._stack is None:
            return
        if self._stack.base_checksum != self.base_checksum:
            raise InputError(
                f"model.stack_on {self.stack_on}: its adapters were trained on backbone weights"
                f" {self._stack.base_checksum[:12]}, the configured ones are {self.base_checksum[:12]}; use its run's"
                " model.backbone, model.quantization and trainer.precision"
            )
        for number, level in enumerate(self._stack.levels):
            try:
                put_level(backbone, level, number)
            except InputError as error:
                raise InputError(f"model.stack_on {self.stack_on}: {error}") from error
        frozen = sum(value.numel() for level in self._stack.levels for value in level.state.values())
        self.findings |= {"stack_levels": self.level, "stack_parameters": frozen}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps the form of what was trained, and all that it stands on."""
        super().on_save_checkpoint(checkpoint)
        *below, own = levels_of(self.backbone)
        checkpoint["instructrec"] |= {"backbone": self.backbone_name, "adapters": own.settings()}
        if below:
            checkpoint[KEY] = [plain_level(level) for level in below]

    @torch.no_grad()
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes what the checkpoint stands on from the checkpoint itself.

        Raises:
            InputError: the checkpoint does not fit, or stands on others.
        """
        levels = levels_below(checkpoint)
        if self.network is None and self.stack_on is not None and levels:
            made = checkpoint.get("instructrec") or {}
            self._stack = Stack(levels, self.backbone_name, str(made.get("base_checksum")))
        super().on_load_checkpoint(checkpoint)
        there = levels_of(self.backbone)[:-1]
        if [level.form() for level in there] != [level.form() for level in levels]:
            raise InputError(
                f"the checkpoint stands on {len(levels)} levels of adapters, the model on {len(there)} or on others:"
                f" {OWN_CONFIG}"
            )
        for mine, kept in zip(there, levels, strict=True):
            for name, value in mine.state.items():
                value.copy_(kept.state[name])
