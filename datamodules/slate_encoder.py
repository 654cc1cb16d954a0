"""Slates as token ids, within the backbone's context."""

from __future__ import annotations

from collections.abc import Sequence

from datamodules.chat import ChatEncoder, EncodedInstruction
from datamodules.slate_text import SlateText
from datamodules.slates import Slate
from datamodules.sources import InputError


class SlateEncoder:
    """Encodes slates in bulk; a prompt that exceeds the context loses its oldest history, and only that.

    Args:
        text: renders slates.
        encoder: encodes instructions.
        context: longest sequence the backbone takes, in tokens: prompt and answer, or of an encoder-decoder each.
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
            excess = made[number].length - self.context
            self.truncated += excess > 0
            shorter = slate
            while excess > 0:
                shown = len(shorter.history)
                if shown == 0:
                    raise InputError(
                        f"user {slate.user!r}: the prompt is {excess} tokens over the backbone's {self.context} even"
                        " without its history"
                    )
                shorter = shorter.without_oldest(max(1, shown * excess // len(made[number].prompt)))
                made[number] = self.encoder.encode([self.text.instruction(shorter)])[0]
                excess = made[number].length - self.context
        return made
