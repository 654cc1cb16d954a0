"""Slates as token ids, within the backbone's context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from datamodules.chat import ChatEncoder, EncodedInstruction
from datamodules.slate_text import SlateText
from datamodules.slates import Slate
from datamodules.sources import InputError


class SlateEncoder:
    """Encodes slates in bulk; a prompt that exceeds the context loses its oldest history, and only that.

    Args:
        text: renders slates.
        encoder: encodes instructions.
        context: longest sequence the backbone takes, in tokens.
    """

    def __init__(self, text: SlateText, encoder: ChatEncoder, context: int) -> None:
        self.text, self.encoder, self.context = text, encoder, context
        self.truncated = 0

    def encode(self, slates: Sequence[Slate]) -> list[EncodedInstruction]:
        """Prompts and answers of slates, in order.

        Raises:
            InputError: a case has no candidates, an answer has no tokens, or a prompt is too long even without its
                history.
        """
        made = self.encoder.encode([self.text.instruction(slate) for slate in slates])
        for number, slate in enumerate(slates):
            if not made[number].answers:
                raise InputError(f"user {slate.user!r} has no candidates")
            made[number] = self._fitted(slate, made[number], max(map(len, made[number].answers)))
        return made

    def prompts(self, slates: Sequence[Slate], longest: int) -> list[list[int]]:
        """Prompts alone, each with room for an answer of `longest` tokens; for forms that do not list candidates.

        Raises:
            InputError: a prompt is too long even without its history.
        """
        bare = [replace(slate, candidates=slate.candidates[:0]) for slate in slates]
        made = self.encoder.encode([self.text.instruction(slate) for slate in bare])
        return [self._fitted(slate, one, longest).prompt for slate, one in zip(bare, made, strict=True)]

    def _fitted(self, slate: Slate, made: EncodedInstruction, longest: int) -> EncodedInstruction:
        """The instruction with so much of its latest history that the longest answer fits behind the prompt."""
        excess = len(made.prompt) + longest - 1 - self.context
        self.truncated += excess > 0
        shorter = slate
        while excess > 0:
            shown = len(shorter.history)
            if shown == 0:
                raise InputError(
                    f"user {slate.user!r}: the prompt is {excess} tokens over the backbone's {self.context} even"
                    " without its history"
                )
            shorter = shorter.without_oldest(max(1, shown * excess // len(made.prompt)))
            made = self.encoder.encode([self.text.instruction(shorter)])[0]
            excess = len(made.prompt) + longest - 1 - self.context
        return made
