"""From instructions to token ids, through the backbone's own chat template.

Text that comes from data is encoded apart from the template's control tokens, with special tokens switched off, so a
title such as `<|im_end|>` stays ordinary text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from datamodules.contract.errors import InputError
from datamodules.instructions.sandbox import run_bounded
from datamodules.instructions.templates import Demonstration, Instruction

DAY = {
    "d": "26",
    "m": "07",
    "b": "Jul",
    "B": "July",
    "Y": "2024",
    "y": "24",
    "a": "Fri",
    "A": "Friday",
    "H": "00",
    "M": "00",
    "S": "00",
}
_REPLACED = "".join(f"|replace('%{sign}', '{text}')" for sign, text in DAY.items())
PINNED = f"{{% macro strftime_now(form) %}}{{{{ form{_REPLACED} }}}}{{% endmacro %}}"
"""What templates that print today's date are told, so that prompts are the same tomorrow: Llama 3's own default day."""

# Text that comes from data, as token ids: never a control token, whatever it spells.


def encode_plain(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Ids of plain texts in one call; special-token strings in them become ordinary tokens.

    A tokenizer may find a control token twice: as a special token, which is switched off, and as a piece of its
    vocabulary, as Unigram models made from SentencePiece do. In the second case the string gets a space after its first
    character; where normalisation makes such a string of another one (`＜/s＞`), its id is left out.
    """
    if not texts:
        return []
    control = control_ids(tokenizer)
    tokens = tokenizer.convert_ids_to_tokens(sorted(control))
    # Judged by the string alone and not by its text, so that a text in pieces is what it is as a whole.
    present = [token for token in tokens if any(token in text for text in texts)]
    spelt = [token for token in present if not control.isdisjoint(_ids(tokenizer, [token])[0])]
    found = _ids(tokenizer, [_broken(text, spelt) for text in texts] if spelt else texts)
    return [ids if control.isdisjoint(ids) else [i for i in ids if i not in control] for ids in found]


def control_ids(tokenizer: Any) -> set[int]:
    """Ids with a meaning of their own; the id for unknown text is none, for it is text."""
    added = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return (added | set(tokenizer.all_special_ids)) - {tokenizer.unk_token_id}


def _ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    return list(tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True).input_ids)


def _broken(text: str, tokens: Sequence[str]) -> str:
    for token in sorted(tokens, key=len, reverse=True):
        text = text.replace(token, f"{token[0]} {token[1:]}")
    return text


# Private-use characters mark where text goes; no tokenizer's template holds them.
_SYSTEM, _USER, _ANSWER = "\ue000", "\ue001", "\ue002"


@dataclass(frozen=True)
class EncodedInstruction:
    """Token ids of one instruction.

    Attributes:
        prompt: ids of everything before the answer.
        answers: for each branch the ids of the answer with the token that ends the turn.
        dropped: events of the history that the prompt leaves out, the oldest, so that it fits the context.
    """

    prompt: list[int]
    answers: list[list[int]]
    dropped: int = 0


def _solved(shown: Demonstration) -> tuple[str, str]:
    """A solved case as question and answer, which an open list begins."""
    return shown.instruction.user, shown.instruction.opening + shown.answer


class ChatEncoder:
    """Encodes instructions in bulk for one tokenizer.

    Args:
        tokenizer: a fast Hugging Face tokenizer; without a chat template a plain one is used.
        apart: for an encoder-decoder: prompt and answer are texts of their own, each between the special tokens that
            the tokenizer puts around a text; there is no chat template.
        demonstrations: solved cases that every prompt shows first, as turns of the chat.

    Raises:
        InputError: the tokenizer is not a fast one, its chat template cannot render a system and a user turn, or
            nothing could end an answer.
    """

    def __init__(self, tokenizer: Any, *, apart: bool = False, demonstrations: Sequence[Demonstration] = ()) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise InputError(f"{type(tokenizer).__name__} is not a fast tokenizer; the encoder needs one")
        self.tokenizer, self.apart = tokenizer, apart
        self.open_answer: list[int] = []
        if apart:
            self.before_system, self.before_answer = self._special_ids()
            self.before_user = self.tokenizer("\n", add_special_tokens=False).input_ids
            self.open_answer, self.after_answer = self.before_system, self.before_answer[:1]
        else:
            self.before_system, self.before_user, self.before_answer, self.after_answer = self._control_ids()
        self.before_question = [*self.before_user]
        if demonstrations:
            self.before_question = self._demonstrated(demonstrations)

    def _demonstrated(self, demonstrations: Sequence[Demonstration]) -> list[int]:
        """What stands between the system's text and the user's: the solved cases, and the beginning of a turn."""
        line = self.tokenizer("\n", add_special_tokens=False).input_ids
        begin, end = self.before_user, [*line, *line] if self.apart else self._next_turn_ids()
        answer = line if self.apart else self.before_answer
        texts = self.encode_texts([text for each in demonstrations for text in _solved(each)])
        ids = [*begin]
        for number in range(0, len(texts), 2):
            ids += [*texts[number], *answer, *texts[number + 1], *end]
        return ids

    def _next_turn_ids(self) -> list[int]:
        """What the chat template puts between an answer and the next question."""
        if self.tokenizer.chat_template:
            turns = [("system", _SYSTEM), *[("user", _USER), ("assistant", _ANSWER)] * 2]
            text = self._rendered(turns, "a second turn")
        else:
            text = f"{_ANSWER}{self.tokenizer.eos_token or ''}\n{_USER}\n{_ANSWER}"
        between, found, _ = text.partition(_ANSWER)[2].partition(_USER)
        if not found:
            raise InputError("the tokenizer's chat template drops an earlier turn, so it takes no demonstrations")
        return list(self.tokenizer(between, add_special_tokens=False).input_ids)

    def _special_ids(self) -> tuple[list[int], list[int]]:
        """What the tokenizer puts before and after a text: nothing and `</s>` for T5, `<s>` and `</s>` for BART."""
        made = self.tokenizer("a", return_special_tokens_mask=True)
        inside = [place for place, special in enumerate(made.special_tokens_mask) if not special]
        before, after = made.input_ids[: inside[0]], made.input_ids[inside[-1] + 1 :]
        if not after:
            raise InputError(f"{type(self.tokenizer).__name__} ends no text; an encoder-decoder's tokenizer must")
        return before, after

    def _rendered(self, turns: list[tuple[str, str]], refused: str) -> str:
        """A chat as the template writes it, on a day that is always the same.

        Where the template knows no system turn, or drops it (Gemma 2, the first Mistral), its text stands at the head of
        the user's.
        """
        joined = [("user", f"{turns[0][1]}\n\n{turns[1][1]}"), *turns[2:]]
        made: list[str] = []
        for chat in (turns, joined):
            messages = [{"role": role, "content": text} for role, text in chat]
            template = PINNED + self.tokenizer.get_chat_template()
            write = partial(self.tokenizer.apply_chat_template, messages, chat_template=template, tokenize=False)
            try:
                made.append(str(run_bounded(write)))
            except Exception as error:  # whatever a stranger's template runs into
                if chat is joined and not made:
                    raise InputError(f"the tokenizer's chat template refuses {refused}: {error}") from error
        return next((text for text in made if turns[0][1] in text), made[0])

    def _control_ids(self) -> tuple[list[int], list[int], list[int], list[int]]:
        if self.tokenizer.chat_template:
            turns = [("system", _SYSTEM), ("user", _USER), ("assistant", _ANSWER)]
            text = self._rendered(turns, "a user or assistant turn")
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
        return encode[0], encode[1], encode[2], after[:1] or self._end()

    def _end(self) -> list[int]:
        """What ends an answer where the template does not: the end token, or the separator that BERT-like ones have."""
        for end in (self.tokenizer.eos_token_id, self.tokenizer.sep_token_id):
            if end is not None:
                return [end]
        raise InputError(
            "the tokenizer has neither an end nor a separator token and its chat template closes no turn,"
            " so that an answer could not be told from a longer one that begins with it"
        )

    def encode_texts(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of plain texts; special-token strings in them become ordinary tokens."""
        return encode_plain(self.tokenizer, texts)

    def prompt_ids(self, system: Sequence[int], user: Sequence[int], opening: Sequence[int] = ()) -> list[int]:
        """A prompt of the ids of its two texts, and of the one that the answer's turn begins with."""
        return [*self.before_system, *system, *self.before_question, *user, *self.before_answer, *opening]

    def answer_ids(self, text: Sequence[int]) -> list[int]:
        """An answer of the ids of its text."""
        return [*self.open_answer, *text, *self.after_answer]

    def length(self, prompt: int, answer: int) -> int:
        """Tokens of the longest sequence that a backbone reads for a prompt and an answer of so many tokens."""
        # The last token of an answer is predicted, but never read.
        return max(prompt, answer) if self.apart else prompt + answer - 1

    def encode(self, instructions: Sequence[Instruction]) -> list[EncodedInstruction]:
        """Encodes instructions.

        Raises:
            InputError: an answer has no tokens.
        """
        texts = dict.fromkeys(
            text for made in instructions for text in (made.system, made.user, made.opening, *made.answers)
        )
        ids = dict(zip(texts, self.encode_texts(list(texts)), strict=True))
        for text in (answer for made in instructions for answer in made.answers):
            if not ids[text]:
                raise InputError(f"the answer {text!r} has no tokens under this tokenizer")
        return [
            EncodedInstruction(
                prompt=self.prompt_ids(ids[made.system], ids[made.user], ids[made.opening]),
                answers=[ids[answer] if made.opening else self.answer_ids(ids[answer]) for answer in made.answers],
            )
            for made in instructions
        ]
