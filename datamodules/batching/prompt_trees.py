"""From slates to batches: prompt trees for language models, item codes for recommenders that know no text.

# U cases, B branches, R rows, N tokens a row, L labelled tokens, H history
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from datamodules.contract.batch import PromptTreeBatch
from datamodules.contract.items import ItemTokens
from datamodules.instructions.prompts import shared_fields
from datamodules.instructions.slates import Slate
from datamodules.tokens.encoder import OpenList, SlateEncoder
from datamodules.tokens.forest import Forest, Ints, build_forests, stretch_bounds

Key = TypeVar("Key")


class PromptTreeCollator:
    """Makes `PromptTreeBatch`es: a group's slates become one tree; what all trees begin with is their common trunk.

    Args:
        slates: encodes slates.
        row_tokens: tokens of whole trees that attention handles at once (a larger tree is handled alone).
    """

    answer_tokens = 2048
    """Answers of one tree hold at most so many tokens; more (a catalogue) become several trees under one prompt."""

    def __init__(self, slates: SlateEncoder, row_tokens: int) -> None:
        self.text, self.slates, self.row_tokens = slates.text, slates, row_tokens

    @property
    def item_tokens(self) -> ItemTokens | None:
        """Items that are tokens, for the model; None where they are words."""
        return self.slates.item_tokens

    def __call__(self, groups: Sequence[Sequence[Slate]]) -> PromptTreeBatch:
        """Collates groups of slates.

        Raises:
            InputError: a prompt is too long even without its history, or an answer has no tokens.
        """
        slates = [slate for group in groups for slate in group]
        lists = self.slates.sequences(groups)
        if lists:
            return self._lists(slates, lists)
        encoded = self.slates.encode(slates)
        prompts: list[list[int]] = []
        answers: list[list[int]] = []
        tree: list[int] = []  # [B]
        trees, position = 0, 0
        for group in groups:
            pairs = [(made.prompt, a) for made in encoded[position : position + len(group)] for a in made.answers]
            position += len(group)
            prompts += [prompt for prompt, _ in pairs]
            answers += [answer for _, answer in pairs]
            for part in parts(pairs, self.answer_tokens):
                tree += [trees] * len(part)
                trees += 1
        trunk = common_beginning(prompts) if trees > 1 else 0
        # The last token of an answer is predicted but predicts nothing, so it never enters the network.
        forests = build_forests([prompt[trunk:] for prompt in prompts], [answer[:-1] for answer in answers], tree)
        sizes = [trunk, *(len(forest.token) for forest in forests)]
        begin = np.cumsum(sizes)[:-1]
        lead = np.arange(trunk)
        paths = [np.concatenate((lead, path + b)) for f, b in zip(forests, begin, strict=True) for path in f.path]
        ends = [np.full(trunk, sum(sizes)), *(f.end + b for f, b in zip(forests, begin, strict=True))]
        return PromptTreeBatch(
            **shared_fields(self.text, slates),
            owner=owners(slates),
            token=torch.from_numpy(np.concatenate([np.array(prompts[0][:trunk], int), *(f.token for f in forests)])),
            end=torch.from_numpy(np.concatenate(ends)),
            depth=torch.from_numpy(np.concatenate([lead, *(f.depth + trunk for f in forests)])),
            trunk=trunk,
            stretches=tuple(trunk + bound for bound in stretch_bounds(sizes[1:], self.row_tokens)),
            **label_fields(answers, paths),
            tokens=sum(sizes),
            tokens_unshared=sum(map(len, paths)),
            truncated=sum(made.dropped > 0 for made in encoded),
        )

    def _lists(self, slates: Sequence[Slate], lists: Sequence[OpenList]) -> PromptTreeBatch:
        """One chain of tokens for each list, whose entries are targets: what merging a prompt for each would give."""
        ids = [[*made.head, *chain.from_iterable(made.entries)] for made in lists]
        counts = [[len(entry) for entry in made.entries[-made.answers :]] for made in lists]
        first = [len(of) - sum(count) for of, count in zip(ids, counts, strict=True)]  # [G] place of the first answer
        trunk = common_beginning([of[:place] for of, place in zip(ids, first, strict=True)]) if len(lists) > 1 else 0
        sizes = np.array([len(of) - 1 - trunk for of in ids])  # the last token predicts nothing
        begin = trunk + np.cumsum(sizes) - sizes
        lead, stop = np.arange(trunk), trunk + int(sizes.sum())
        place = [  # of the token before each label; a list's first answer may follow the trunk
            np.concatenate((lead, np.arange(b, b + size)))[low - 1 :]
            for b, size, low in zip(begin, sizes, first, strict=True)
        ]
        lengths = np.concatenate(counts)
        return PromptTreeBatch(
            **shared_fields(self.text, slates),
            owner=owners(slates),
            token=torch.from_numpy(np.concatenate([ids[0][:trunk], *(of[trunk:-1] for of in ids)]).astype(np.int64)),
            end=torch.from_numpy(np.concatenate((np.full(trunk, stop), np.repeat(begin + sizes, sizes)))),
            depth=torch.from_numpy(np.concatenate([lead, *(np.arange(trunk, trunk + size) for size in sizes)])),
            trunk=trunk,
            stretches=tuple(trunk + bound for bound in stretch_bounds(sizes.tolist(), self.row_tokens)),
            label_place=torch.from_numpy(np.concatenate(place)),
            label_token=torch.from_numpy(np.concatenate([of[low:] for of, low in zip(ids, first, strict=True)])),
            label_branch=torch.repeat_interleave(torch.from_numpy(lengths)),
            tokens=stop,
            tokens_unshared=sum(
                int((low + np.cumsum(count) - 1).sum()) for low, count in zip(first, counts, strict=True)
            ),
            truncated=0,
        )


def owners(slates: Sequence[Slate]) -> Tensor:
    """Returns `[U]` numbers that tell the users of slates apart."""
    number: dict[str, int] = {}
    return torch.tensor([number.setdefault(slate.user, len(number)) for slate in slates])


def common_beginning(prompts: Sequence[list[int]]) -> int:
    """Tokens that all prompts begin with; the last token of a prompt is never among them.

    Example:
        >>> common_beginning([[5, 6, 7], [5, 6, 9, 9], [5, 6]])
        1
    """
    first, last = min(prompts), max(prompts)  # what these two share, all share
    limit = min(map(len, prompts)) - 1
    return next((n for n, (a, b) in enumerate(zip(first, last, strict=False)) if a != b or n == limit), 0)


def lay_out(
    forests: Sequence[Forest], rows: Sequence[Sequence[int]], pad: int
) -> tuple[Tensor, Tensor, Tensor, list[int]]:
    """Writes forests side by side into rows.

    Returns:
        `[R, N]` ids, ends and depths; and each forest's place in the flattened rows.

    Example:
        >>> token, end, depth, offset = lay_out(build_forests([[], []], [[7, 8], [9]], [0, 1]), [[1, 0]], pad=0)
        >>> token.tolist(), end.tolist(), depth.tolist(), offset
        ([[9, 7, 8]], [[1, 3, 3]], [[0, 0, 1]], [1, 0])
    """
    width = max(sum(len(forests[t].token) for t in row) for row in rows)
    token = np.full((len(rows), width), pad, dtype=np.int64)
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
    return torch.from_numpy(token), torch.from_numpy(end), torch.from_numpy(depth), offset


def label_fields(answers: Sequence[list[int]], places: Sequence[Ints]) -> dict[str, Any]:
    """The columns `label_place`, `label_token` and `label_branch` of a batch.

    Args:
        answers: ids of each branch's answer.
        places: for each branch the places of the tokens that lead to its end; the last ones predict the answer.
    """
    count = [len(answer) for answer in answers]
    token = np.fromiter(chain.from_iterable(answers), dtype=np.int64, count=sum(count))
    return {
        "label_place": torch.from_numpy(np.concatenate([path[-n:] for path, n in zip(places, count, strict=True)])),
        "label_token": torch.from_numpy(token),
        "label_branch": torch.repeat_interleave(torch.tensor(count)),
    }


def parts(pairs: Sequence[tuple[Key, list[int]]], limit: int) -> Iterator[list[tuple[Key, list[int]]]]:
    """Cuts pairs of anything and an answer into runs whose answers hold at most `limit` tokens."""
    part: list[tuple[Key, list[int]]] = []
    size = 0
    for pair in pairs:
        if part and size + len(pair[1]) > limit:
            yield part
            part, size = [], 0
        part.append(pair)
        size += len(pair[1])
    yield part
