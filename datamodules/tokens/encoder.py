"""Slates as token ids, within the backbone's context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from datamodules.contract.errors import InputError
from datamodules.contract.items import ItemTokens
from datamodules.instructions.prompts import SlateText
from datamodules.instructions.slates import Slate
from datamodules.tokens.chat import ChatEncoder, EncodedInstruction
from datamodules.tokens.pieces import PromptPieces


class OpenList(NamedTuple):
    """A prompt that is a list, of which the last entries are answers to those before them.

    Attributes:
        head: ids before the list.
        entries: ids of each entry.
        answers: number of the last entries that are predicted; there is one before them.
    """

    head: list[int]
    entries: list[list[int]]
    answers: int

    @property
    def size(self) -> int:
        """Tokens of head and list."""
        return len(self.head) + sum(map(len, self.entries))


class SlateEncoder:
    """Encodes slates in bulk; a prompt that exceeds the context loses its oldest history, and only that.

    Args:
        text: renders slates.
        encoder: encodes texts.
        context: longest sequence the backbone takes, in tokens: prompt and answer, or of an encoder-decoder each.
        first_item: token id of item 0, where items are tokens of their own.

    Raises:
        InputError: an answer of the template has no tokens.
    """

    def __init__(self, text: SlateText, encoder: ChatEncoder, context: int, first_item: int | None = None) -> None:
        self.text, self.encoder, self.context, self.first_item = text, encoder, context, first_item
        self.pieces = PromptPieces(text, encoder, first_item)
        self.titles = self.pieces.titles
        self._others = {0: self.pieces}
        self._fixed: dict[tuple[str, ...], list[list[int]]] = {}
        for each in (text, *text.others):
            _ = self._fixed_ids(each.template.answers)

    def encode(self, slates: Sequence[Slate]) -> list[EncodedInstruction]:
        """Prompts and answers of slates, in order.

        Raises:
            InputError: a case has no candidates, a candidate has no tokens, or a prompt is too long even without its
                history.
        """
        answers = [self._answers(slate) for slate in slates]
        made = self._fitted(slates, [max(map(len, each)) for each in answers])
        return [replace(one, answers=each) for one, each in zip(made, answers, strict=True)]

    def sequences(self, groups: Sequence[Sequence[Slate]]) -> list[OpenList] | None:
        """Groups whose every slate continues the list of the one before it, each as one list.

        Returns:
            None where a group is anything else, or is too long for the context.
        """
        made: list[OpenList] = []
        for group in groups:
            last = group[-1]
            follows = all(
                len(slate.candidates) == 1 and slate.begin == last.begin and slate.place == last.place - back
                for back, slate in enumerate(reversed(group))
            )
            grown = last.begin >= 0 and last.begin + len(last.history) == last.place
            found = self._pieces(last).sequence(last) if follows and grown else None
            if found is None or not all(self.titles.alone(slate.target) for slate in group):
                return None  # the usual way names a title without tokens
            made.append(OpenList(found[0], found[1], len(group)))
            if made[-1].size - 1 > self.context:
                return None
        return made

    def prompts(self, slates: Sequence[Slate], longest: int) -> list[EncodedInstruction]:
        """Prompts of slates without answers, with room for one of `longest` tokens.

        Raises:
            InputError: a prompt is too long even without its history.
        """
        return self._fitted(slates, [longest] * len(slates))

    def blank_prompt(self) -> list[int] | None:
        """Ids of the prompt of a user without a history; None where prompts tell more of a user, or in several wordings."""
        if self.text.told or self.text.others or self.text.template.form != "matching":
            return None
        none = np.empty(0, dtype=np.int64)
        slate = Slate(-1, "", none, none.astype(bool), np.zeros(1, dtype=np.int64), 0, True)
        return self.prompts([slate], 1)[0].prompt

    def _fixed_ids(self, answers: tuple[str, ...]) -> list[list[int]]:
        if answers not in self._fixed:
            made = self.encoder.encode_texts(answers)
            for answer, ids in zip(answers, made, strict=True):
                if not ids:
                    raise InputError(f"the answer {answer!r} has no tokens under this tokenizer")
            self._fixed[answers] = [self.encoder.answer_ids(ids) for ids in made]
        return self._fixed[answers]

    def _answers(self, slate: Slate) -> list[list[int]]:
        text = self.text.of(slate)
        if text.template.answers:
            return self._fixed_ids(text.template.answers)
        if text.template.answer:
            written = self.encoder.encode_texts(text.answers(slate))
            if not all(written):
                raise InputError(f"user {slate.user!r}: the answer of {text.template.id} has no tokens")
            return [self.encoder.answer_ids(ids) for ids in written]
        items = text.candidates(slate).tolist()
        if not items:
            raise InputError(f"user {slate.user!r} has no candidates")
        for item in items:
            if not self.titles.alone(item):
                nameless = self.text.name(item)
                raise InputError(f"user {slate.user!r}: the candidate {nameless} has no tokens under this tokenizer")
        return [self.answer(item, slate) for item in items]

    def answer(self, item: int, slate: Slate | None = None) -> list[int]:
        """Ids of an item as an answer, in the wording of a slate: to where nothing else can follow."""
        pieces = self.pieces if slate is None else self._pieces(slate)
        if self.first_item is not None or pieces.text.template.entry:
            return pieces.entry(item)
        return self.encoder.answer_ids(self.titles.alone(item))

    @property
    def item_tokens(self) -> ItemTokens | None:
        """What a model needs to give every item a vector; None where items are written in words."""
        if self.first_item is None or self.text.token_start is None:
            return None
        words = self.encoder.encode_texts([f" {title}" for title in self.text.titles])
        return ItemTokens(self.first_item, tuple(map(tuple, words)), self.text.token_start)

    def _fitted(self, slates: Sequence[Slate], longest: Sequence[int]) -> list[EncodedInstruction]:
        """Prompts with as much of the latest history as leaves room for the longest answer."""
        made = [EncodedInstruction(prompt, []) for prompt in self._prompts(slates)]
        # One more event makes no prompt shorter, so the number to drop is found by halving, for all slates at once.
        low, high = dict[int, int](), dict[int, int]()  # too few, and enough where there is an answer
        for number, one in enumerate(made):
            if self._excess(one.prompt, longest[number]) > 0:
                low[number], high[number] = 0, len(slates[number].history)
        tried = dict(high)
        while tried:
            prompts = self._prompts([slates[number].without_oldest(count) for number, count in tried.items()])
            for (number, count), prompt in zip(tried.items(), prompts, strict=True):
                excess = self._excess(prompt, longest[number])
                if excess <= 0:
                    high[number], made[number] = count, EncodedInstruction(prompt, [], dropped=count)
                elif count == len(slates[number].history):
                    raise InputError(
                        f"user {slates[number].user!r}: the prompt is {excess} tokens over the backbone's {self.context}"
                        " even without its history"
                    )
                else:
                    low[number] = count
            tried = {number: (low[number] + high[number]) // 2 for number in tried if high[number] - low[number] > 1}
        return made

    def _excess(self, prompt: Sequence[int], longest: int) -> int:
        return self.encoder.length(len(prompt), longest) - self.context

    def _prompts(self, slates: Sequence[Slate]) -> list[list[int]]:
        for wording in {slate.wording for slate in slates}:
            mine = [slate for slate in slates if slate.wording == wording]
            self._pieces(mine[0]).prepare(mine)
        made = [self._pieces(slate).prompt(slate) for slate in slates]
        missing = [number for number, prompt in enumerate(made) if prompt is None]
        whole = self.pieces.whole([slates[number] for number in missing])
        for number, prompt in zip(missing, whole, strict=True):
            made[number] = prompt
        return [prompt for prompt in made if prompt is not None]

    def _pieces(self, slate: Slate) -> PromptPieces:
        """The pieces of a slate's wording; those of a mixture's others are made when they are needed."""
        if slate.wording not in self._others:
            self._others[slate.wording] = PromptPieces(self.text.of(slate), self.encoder, self.first_item)
        return self._others[slate.wording]
