"""From slates to batches: prompt trees for language models, item codes for recommenders that know no text.

# U cases, B branches, R rows, N tokens a row, L labelled tokens, H history
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from datamodules.batch import Batch, EventBatch, InteractionBatch, PromptTreeBatch
from datamodules.chat import ChatEncoder
from datamodules.forest import Forest, build_forest, pack_rows
from datamodules.protocol import Sequences
from datamodules.slate_encoder import SlateEncoder
from datamodules.slate_text import SlateText, shared_fields
from datamodules.slates import Slate

Pair = tuple[list[int], list[int]]
"""Token ids of a prompt and of one answer."""


class PromptTreeCollator:
    """Makes `PromptTreeBatch`es: the slates of a group become one tree, trees are packed into rows.

    Args:
        text: renders slates.
        encoder: encodes instructions.
        context: longest sequence the backbone takes, in tokens; longer prompts lose their oldest history.
        row_tokens: tokens a packed row holds (a larger tree gets a longer row).
        pad: id that fills rows.
    """

    answer_tokens = 2048
    """Answers of one tree hold at most so many tokens; more (a catalogue) become several trees under one prompt."""

    def __init__(self, text: SlateText, encoder: ChatEncoder, context: int, row_tokens: int, pad: int) -> None:
        self.text, self.row_tokens, self.pad = text, row_tokens, pad
        self.slates = SlateEncoder(text, encoder, context)

    @property
    def truncated(self) -> int:
        """Prompts that lost history."""
        return self.slates.truncated

    def __call__(self, groups: Sequence[Sequence[Slate]]) -> PromptTreeBatch:
        """Collates groups of slates.

        Raises:
            InputError: a prompt is too long even without its history, or an answer has no tokens.
        """
        slates = [slate for group in groups for slate in group]
        encoded = self.slates.encode(slates)
        forests: list[Forest] = []
        answers: list[list[int]] = []
        paths: list[np.ndarray[Any, Any]] = []
        tree_of: list[int] = []
        unshared, position = 0, 0
        for group in groups:
            pairs = [(made.prompt, a) for made in encoded[position : position + len(group)] for a in made.answers]
            position += len(group)
            for part in _parts(pairs, self.answer_tokens):
                # The last token of an answer is predicted but predicts nothing, so it never enters the network.
                sequences = [[*prompt, *answer[:-1]] for prompt, answer in part]
                answers += [answer for _, answer in part]
                tree_of += [len(forests)] * len(part)
                forests.append(build_forest(sequences))
                paths += forests[-1].path
                unshared += sum(map(len, sequences))
        rows = pack_rows([len(f.token) for f in forests], self.row_tokens)
        token, end, depth, offset = self._lay_out(forests, rows)
        place, label, branch = [], [], []
        for number, (answer, path) in enumerate(zip(answers, paths, strict=True)):
            place.append(path[-len(answer) :] + offset[tree_of[number]])
            label += answer
            branch += [number] * len(answer)
        return PromptTreeBatch(
            **shared_fields(self.text, slates),
            token=torch.from_numpy(token),
            end=torch.from_numpy(end),
            depth=torch.from_numpy(depth),
            label_place=torch.from_numpy(np.concatenate(place)),
            label_token=torch.tensor(label),
            label_branch=torch.tensor(branch),
            tokens=sum(len(f.token) for f in forests),
            tokens_unshared=unshared,
        )

    def _lay_out(self, forests: Sequence[Forest], rows: Sequence[Sequence[int]]) -> tuple[Any, Any, Any, list[int]]:
        """Writes trees side by side into `[R, N]` rows; returns also each tree's place in the flattened rows."""
        width = max(sum(len(forests[t].token) for t in row) for row in rows)
        token = np.full((len(rows), width), self.pad, dtype=np.int64)
        end = np.tile(np.arange(1, width + 1), (len(rows), 1))  # padding: trees of one token
        depth = np.zeros((len(rows), width), dtype=np.int64)
        offset = [0] * len(forests)
        for number, row in enumerate(rows):
            begin = 0
            for tree in row:
                forest = forests[tree]
                stretch = slice(begin, begin + len(forest.token))
                token[number, stretch] = forest.token
                end[number, stretch] = forest.end + begin
                depth[number, stretch] = forest.depth
                offset[tree] = number * width + begin
                begin = stretch.stop
        return token, end, depth, offset


def _parts(pairs: list[Pair], limit: int) -> Iterator[list[Pair]]:
    """Cuts (prompt, answer) pairs into runs whose answers hold at most `limit` tokens."""
    part: list[Pair] = []
    size = 0
    for pair in pairs:
        if part and size + len(pair[1]) > limit:
            yield part
            part, size = [], 0
        part.append(pair)
        size += len(pair[1])
    yield part


class InteractionCollator:
    """Makes `InteractionBatch`es: item codes only.

    Args:
        text: knows the gains.
    """

    truncated = 0

    def __init__(self, text: SlateText) -> None:
        self.text = text

    def __call__(self, groups: Sequence[Sequence[Slate]]) -> Batch:
        """Collates groups of slates."""
        slates = [slate for group in groups for slate in group]
        width = max(1, *(len(slate.history) for slate in slates))
        history = torch.full((len(slates), width), -1)
        for row, slate in zip(history, slates, strict=True):
            if len(slate.history):
                row[-len(slate.history) :] = torch.from_numpy(np.ascontiguousarray(slate.history))
        return InteractionBatch(**shared_fields(self.text, slates), history=history)


def training_events(sequences: Sequences) -> EventBatch:
    """All training events as one batch."""
    user = np.repeat(np.arange(len(sequences.user_ids)), np.diff(sequences.start))
    seen = np.arange(len(sequences.item)) < sequences.train_end[user]
    return EventBatch(
        user=torch.from_numpy(user[seen]),
        item=torch.from_numpy(sequences.item[seen]),
        users=len(sequences.user_ids),
        items=len(sequences.item_ids),
    )
