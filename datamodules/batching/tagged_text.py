"""Collates slates for encoders that tag tokens.

# U cases, B branches, R rows, N tokens a row
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from datamodules.batching.prompt_trees import lay_out
from datamodules.contract.batch import TaggedTextBatch
from datamodules.contract.errors import InputError
from datamodules.instructions.prompts import SlateText, shared_fields
from datamodules.instructions.slates import Slate
from datamodules.tokens.forest import build_forest, pack_rows
from datamodules.tokens.titles import TitleTokens


class TaggedTextCollator:
    """Makes `TaggedTextBatch`es: history and candidate titles in one encoder text.

    Args:
        text: renders slates; only its titles are used.
        tokenizer: a fast tokenizer with separator tokens.
        context: longest text the encoder takes, in tokens; the oldest history goes first.
        row_tokens: tokens a packed row holds (a longer text gets a longer row).
    """

    def __init__(self, text: SlateText, tokenizer: Any, context: int, row_tokens: int) -> None:
        if tokenizer.cls_token_id is None or tokenizer.sep_token_id is None:
            raise InputError(
                f"{type(tokenizer).__name__} has no [CLS] and [SEP]; tagged texts need an encoder backbone"
            )
        self.text, self.tokenizer, self.context, self.row_tokens = text, tokenizer, context, row_tokens
        self._titles = TitleTokens(tokenizer, text.titles)

    def __call__(self, groups: Sequence[Sequence[Slate]]) -> TaggedTextBatch:
        """Collates groups of slates, one text each, several texts in a row.

        Raises:
            InputError: the candidates alone are longer than the context, or a candidate has no tokens.
        """
        slates = [slate for group in groups for slate in group]
        shared = shared_fields(self.text, slates)
        texts = []
        first_branch = 0
        for slate in slates:
            texts.append(self._text(slate, first_branch))
            first_branch += len(slate.candidates)
        paths = [build_forest([ids]) for ids, _, _ in texts]
        rows = pack_rows([len(path.token) for path in paths], self.row_tokens)
        # A path's end is the same for all its tokens, so it tells the texts of a row apart.
        token, segment, position, offset = lay_out(paths, rows, self.tokenizer.pad_token_id)
        branch = torch.full_like(token, -1)
        attention = torch.zeros_like(token, dtype=torch.bool)
        for begin, (ids, owner, _) in zip(offset, texts, strict=True):
            branch.view(-1)[begin : begin + len(ids)] = torch.tensor(owner)
            attention.view(-1)[begin : begin + len(ids)] = True
        return TaggedTextBatch(
            **shared,
            token=token,
            attention=attention,
            segment=segment,
            position=position,
            branch=branch,
            tokens=sum(len(ids) for ids, _, _ in texts),
            truncated=sum(shortened for _, _, shortened in texts),
        )

    def _text(self, slate: Slate, first_branch: int) -> tuple[list[int], list[int], bool]:
        """Ids, the branch of each, and whether some of the history did not fit."""
        separator = self.tokenizer.sep_token_id
        tail: list[int] = []
        owner: list[int] = []
        for number, item in enumerate(slate.candidates.tolist()):
            title = self._titles.alone(item)
            if not title:
                raise InputError(f"user {slate.user!r}: the candidate {self.text.name(item)} has no tokens")
            tail += [*title, separator]
            owner += [first_branch + number] * len(title) + [-1]
        room = self.context - len(tail) - 2
        if room < 0:
            raise InputError(f"user {slate.user!r}: the candidates alone exceed the backbone's {self.context} tokens")
        history: list[int] = []
        shortened = False
        for item in slate.history[::-1].tolist():
            title = self._titles.alone(item)
            if len(history) + len(title) + 1 > room:
                shortened = True
                break
            history = [*title, separator, *history]
        head = [self.tokenizer.cls_token_id, *history, separator]
        return [*head, *tail], [-1] * len(head) + owner, shortened
