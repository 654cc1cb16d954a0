"""Collates slates for encoder-decoders: prompts for the encoder, trees of answers for the decoder.

# B branches, E encoder rows, S tokens of an encoder row, R decoder rows, N tokens of a decoder row, P prompts
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from datamodules.batching.prompt_trees import label_fields, lay_out, parts
from datamodules.contract.batch import EncoderDecoderBatch
from datamodules.instructions.prompts import shared_fields
from datamodules.instructions.slates import Slate
from datamodules.tokens.encoder import SlateEncoder
from datamodules.tokens.forest import Forest, Ints, build_forest, pack_rows

Branch = tuple[int, list[int]]
"""Number of a branch, and ids of its answer."""


class EncoderDecoderCollator:
    """Makes `EncoderDecoderBatch`es: equal prompts are encoded once, their answers become one tree.

    An encoder reads both ways, so that a longer history changes every state: successive targets of a user share no
    prompt, unlike those of `PromptTreeCollator`.

    Args:
        slates: encodes slates, prompts and answers apart.
        row_tokens: tokens a packed row holds, of prompts as of answers (a longer prompt gets a longer row).
        pad: id that fills rows.
    """

    answer_tokens = 2048
    """Answers in one decoder row hold at most so many tokens; more (a catalogue) become several rows."""

    def __init__(self, slates: SlateEncoder, row_tokens: int, pad: int) -> None:
        self.text, self.slates, self.pad = slates.text, slates, pad
        # Some families look positions up for the whole row, so no row may be longer than the context.
        self.row_tokens = min(row_tokens, slates.context)
        self.answer_tokens = min(self.answer_tokens, slates.context)

    def __call__(self, groups: Sequence[Sequence[Slate]]) -> EncoderDecoderBatch:
        """Collates groups of slates.

        Raises:
            InputError: a prompt is too long even without its history, or an answer has no tokens.
        """
        slates = [slate for group in groups for slate in group]
        encoded = self.slates.encode(slates)
        under: dict[tuple[int, ...], list[Branch]] = {}
        answers: list[list[int]] = []
        for made in encoded:
            under.setdefault(tuple(made.prompt), []).extend(enumerate(made.answers, len(answers)))
            answers += made.answers
        prompts = [build_forest([prompt]) for prompt in under]
        trees, owner, path, tree_of = self._trees(list(under.values()), len(answers))
        prompt_rows, rows = self._rows(prompts, trees, owner)
        prompt, segment, position, begin = lay_out(prompts, prompt_rows, self.pad)
        token, end, depth, offset = lay_out(trees, rows, self.pad)
        # A path's end is the same for all its tokens, so it tells the prompts of a row apart.
        flat = segment.flatten()
        row_of = {number: row for row, numbers in enumerate(prompt_rows) for number in numbers}
        prompt_row = torch.tensor([row_of[owner[numbers[0]]] for numbers in rows])
        reads = segment[prompt_row, :1].expand_as(token).clone()  # padding reads the row's first prompt
        for tree, forest in enumerate(trees):
            reads.view(-1)[offset[tree] : offset[tree] + len(forest.token)] = flat[begin[owner[tree]]]
        return EncoderDecoderBatch(
            **shared_fields(self.text, slates),
            prompt=prompt,
            prompt_segment=segment,
            prompt_position=position,
            prompt_row=prompt_row,
            token=token,
            end=end,
            depth=depth,
            segment=reads,
            **label_fields(answers, [path[b] + offset[tree_of[b]] for b in range(len(answers))]),
            tokens=sum(len(forest.token) for forest in (*prompts, *trees)),
            tokens_unshared=sum(len(made.prompt) * len(made.answers) for made in encoded) + sum(map(len, answers)),
            truncated=sum(made.dropped > 0 for made in encoded),
        )

    def _trees(
        self, under: Sequence[list[Branch]], branches: int
    ) -> tuple[list[Forest], list[int], list[Ints], list[int]]:
        """Trees of answers and the number of each one's prompt; for each branch its path and the number of its tree."""
        trees: list[Forest] = []
        owner: list[int] = []
        path: list[Ints] = [np.empty(0, dtype=np.int64)] * branches
        tree_of = [0] * branches
        for number, pairs in enumerate(under):
            for part in parts(pairs, self.answer_tokens):
                # The start token takes the place of the last token of an answer, which predicts nothing.
                trees.append(build_forest([[self.pad, *answer[:-1]] for _, answer in part]))
                for (branch, _), way in zip(part, trees[-1].path, strict=True):
                    path[branch], tree_of[branch] = way, len(owner)
                owner.append(number)
        return trees, owner, path, tree_of

    def _rows(
        self, prompts: Sequence[Forest], trees: Sequence[Forest], owner: Sequence[int]
    ) -> tuple[list[list[int]], list[list[int]]]:
        """Packs prompts, and their first trees beside them; a prompt's further trees get decoder rows of their own."""
        first = {number: tree for tree, number in reversed(list(enumerate(owner)))}
        sizes = [max(len(p.token), len(trees[first[number]].token)) for number, p in enumerate(prompts)]
        packed = pack_rows(sizes, self.row_tokens)
        further = [[tree] for tree, number in enumerate(owner) if first[number] != tree]
        return packed, [*([first[number] for number in row] for row in packed), *further]
