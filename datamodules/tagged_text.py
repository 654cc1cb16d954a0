"""Collates slates for encoders that tag tokens.

# U cases, B branches, R rows, N tokens a row
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from datamodules.batch import TaggedTextBatch
from datamodules.instructions import clean_title
from datamodules.plain_text import encode_plain
from datamodules.slate_text import SlateText, shared_fields
from datamodules.slates import Slate
from datamodules.sources import InputError


class TaggedTextCollator:
    """Makes `TaggedTextBatch`es: history and candidate titles in one encoder text.

    Args:
        text: renders slates; only its titles are used.
        tokenizer: a fast tokenizer with separator tokens.
        context: longest text the encoder takes, in tokens; the oldest history goes first.
    """

    def __init__(self, text: SlateText, tokenizer: Any, context: int) -> None:
        if tokenizer.cls_token_id is None or tokenizer.sep_token_id is None:
            raise InputError(
                f"{type(tokenizer).__name__} has no [CLS] and [SEP]; tagged texts need an encoder backbone"
            )
        self.text, self.tokenizer, self.context = text, tokenizer, context
        self.truncated = 0
        self._titles: dict[int, list[int]] = {}

    def _title(self, item: int) -> list[int]:
        if item not in self._titles:
            title = clean_title(self.text.titles[item])
            [self._titles[item]] = encode_plain(self.tokenizer, [title])
        return self._titles[item]

    def __call__(self, groups: Sequence[Sequence[Slate]]) -> TaggedTextBatch:
        """Collates groups of slates, one text each.

        Raises:
            InputError: the candidates alone are longer than the context, or a candidate has no tokens.
        """
        slates = [slate for group in groups for slate in group]
        shared = shared_fields(self.text, slates)
        rows = []
        first_branch = 0
        for slate in slates:
            rows.append(self._row(slate, first_branch))
            first_branch += len(slate.candidates)
        width = max(len(ids) for ids, _ in rows)
        token = torch.full((len(rows), width), self.tokenizer.pad_token_id)
        branch = torch.full((len(rows), width), -1)
        attention = torch.zeros((len(rows), width), dtype=torch.bool)
        for number, (ids, owner) in enumerate(rows):
            token[number, : len(ids)] = torch.tensor(ids)
            branch[number, : len(ids)] = torch.tensor(owner)
            attention[number, : len(ids)] = True
        return TaggedTextBatch(
            **shared, token=token, attention=attention, branch=branch, tokens=sum(len(ids) for ids, _ in rows)
        )

    def _row(self, slate: Slate, first_branch: int) -> tuple[list[int], list[int]]:
        separator = self.tokenizer.sep_token_id
        tail: list[int] = []
        owner: list[int] = []
        for number, item in enumerate(slate.candidates):
            title = self._title(int(item))
            if not title:
                raise InputError(f"user {slate.user!r}: the candidate {self.text.titles[item]!r} has no tokens")
            tail += [*title, separator]
            owner += [first_branch + number] * len(title) + [-1]
        room = self.context - len(tail) - 2
        if room < 0:
            raise InputError(f"user {slate.user!r}: the candidates alone exceed the backbone's {self.context} tokens")
        history: list[int] = []
        for item in slate.history[::-1]:
            title = self._title(int(item))
            if len(history) + len(title) + 1 > room:
                self.truncated += 1
                break
            history = [*title, separator, *history]
        head = [self.tokenizer.cls_token_id, *history, separator]
        return [*head, *tail], [-1] * len(head) + owner
