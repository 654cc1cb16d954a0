"""From instructions to token ids, through the backbone's own chat template.

Text that comes from data is encoded apart from the template's control tokens, with special tokens switched off, so a
title such as `<|im_end|>` stays ordinary text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from datamodules.instructions import Instruction
from datamodules.plain_text import encode_plain
from datamodules.safe_templates import run_bounded
from datamodules.sources import InputError

# Private-use characters mark where text goes; no tokenizer's template holds them.
_SYSTEM, _USER, _ANSWER = "\ue000", "\ue001", "\ue002"


@dataclass(frozen=True)
class EncodedInstruction:
    """Token ids of one instruction.

    Attributes:
        prompt: ids of everything before the answer.
        answers: for each branch the ids of the answer with the token that ends the turn.
    """

    prompt: list[int]
    answers: list[list[int]]


class ChatEncoder:
    """Encodes instructions in bulk for one tokenizer.

    Args:
        tokenizer: a fast Hugging Face tokenizer; without a chat template a plain one is used.

    Raises:
        InputError: the tokenizer is not a fast one, or its chat template cannot render a system and a user turn.
    """

    def __init__(self, tokenizer: Any) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise InputError(f"{type(tokenizer).__name__} is not a fast tokenizer; the encoder needs one")
        self.tokenizer = tokenizer
        self.before_system, self.before_user, self.before_answer, self.after_answer = self._control_ids()

    def _control_ids(self) -> tuple[list[int], list[int], list[int], list[int]]:
        turns = [
            {"role": "system", "content": _SYSTEM},
            {"role": "user", "content": _USER},
            {"role": "assistant", "content": _ANSWER},
        ]
        if self.tokenizer.chat_template:
            try:
                text = run_bounded(lambda: self.tokenizer.apply_chat_template(turns, tokenize=False))
            except Exception as error:  # whatever a stranger's template runs into
                raise InputError(
                    f"the tokenizer's chat template refuses a system, user or assistant turn: {error}"
                ) from error
        else:
            bos = self.tokenizer.bos_token or ""
            text = f"{bos}{_SYSTEM}\n{_USER}\n{_ANSWER}{self.tokenizer.eos_token or ''}\n"
        pieces: list[str] = []
        for mark in (_SYSTEM, _USER, _ANSWER):
            head, found, text = text.partition(mark)
            if not found:
                raise InputError("the tokenizer's chat template drops a system, user or assistant turn")
            pieces.append(head)
        encode = self.tokenizer(pieces, add_special_tokens=False).input_ids
        after = self.tokenizer(text, add_special_tokens=False).input_ids
        # One closing token is enough to tell "Alien" from "Aliens"; a line break after it tells nothing.
        return encode[0], encode[1], encode[2], after[:1]

    def encode_texts(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of plain texts; special-token strings in them become ordinary tokens."""
        return encode_plain(self.tokenizer, texts)

    def encode(self, instructions: Sequence[Instruction]) -> list[EncodedInstruction]:
        """Encodes instructions.

        Raises:
            InputError: an answer has no tokens.
        """
        systems = [self._cached(instruction.system) for instruction in instructions]
        users = self.encode_texts([instruction.user for instruction in instructions])
        made = []
        for instruction, system, user in zip(instructions, systems, users, strict=True):
            answers = [[*self._cached(answer), *self.after_answer] for answer in instruction.answers]
            for answer, ids in zip(instruction.answers, answers, strict=True):
                if len(ids) <= len(self.after_answer):
                    raise InputError(f"the answer {answer!r} has no tokens under this tokenizer")
            prompt = [*self.before_system, *system, *self.before_user, *user, *self.before_answer]
            made.append(EncodedInstruction(prompt=prompt, answers=answers))
        return made

    @lru_cache(maxsize=200_000)  # noqa: B019  # one encoder lives as long as its data module; titles repeat endlessly
    def _cached(self, text: str) -> tuple[int, ...]:
        return tuple(self.encode_texts([text])[0])
