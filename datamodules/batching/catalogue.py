"""The whole catalogue as answers: one tree of title tokens, made once, and batches of prompts to rank it under.

# U cases, I items, T nodes of the tree, S longest prompt
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch

from datamodules.batching.prompt_trees import PromptTreeCollator
from datamodules.contract.batch import CatalogueBatch, CatalogueTrie, PromptTreeBatch
from datamodules.contract.errors import InputError
from datamodules.contract.items import ItemTokens
from datamodules.instructions.prompts import shared_fields
from datamodules.instructions.slates import Slate
from datamodules.items.base import clean_title
from datamodules.tokens.encoder import SlateEncoder
from datamodules.tokens.forest import build_forest


def build_trie(answers: Sequence[Sequence[int]]) -> CatalogueTrie:
    """Merges the answers of a catalogue by their common beginnings.

    Args:
        answers: I token sequences, item by item; repeats allowed, none empty.

    Raises:
        ValueError: an answer is empty, or there is none.

    Example:
        >>> trie = build_trie([[5, 6, 1], [5, 1], [5, 6, 1]])
        >>> trie.token.tolist(), trie.depth.tolist(), trie.last.tolist(), trie.item.tolist()
        ([5, 1, 6, 1], [0, 1, 1, 2], [3, 1, 3], [1, 0, 2])
    """
    forest = build_forest(answers)
    nodes = len(forest.token)
    last = np.array([path[-1] for path in forest.path])
    columns = {
        "token": forest.token,
        "end": forest.end,
        "depth": forest.depth,
        "parent": forest.parent,
        "child": np.argsort(forest.parent, kind="stable"),
        "child_start": np.searchsorted(np.sort(forest.parent), np.arange(-1, nodes + 1)),
        "last": last,
        "item": np.argsort(last, kind="stable"),
        "item_start": np.searchsorted(np.sort(last), np.arange(nodes + 1)),
    }
    sizes, ends = (np.diff(columns[name]) for name in ("child_start", "item_start"))
    runs_on = (sizes[1:] == 1) & (np.append(ends[1:], 1) == 0)  # in preorder an only child is the next node
    stop = np.where(runs_on, nodes, np.arange(nodes))
    columns["stop"] = np.minimum.accumulate(stop[::-1])[::-1]
    digest = hashlib.sha256()
    for name in ("token", "end", "last"):
        digest.update(columns[name].tobytes())
    tensors = {name: torch.from_numpy(column.copy()) for name, column in columns.items()}
    return CatalogueTrie(**tensors, height=int(forest.depth.max()) + 1, key=digest.hexdigest())


def catalogue_answers(slates: SlateEncoder) -> list[list[int]]:
    """Token ids of every item's answer.

    Raises:
        InputError: a title has no tokens.
    """
    for item, title in enumerate(slates.text.titles):
        if not clean_title(title) or not slates.titles.alone(item):
            raise InputError(
                f"item {slates.text.item_ids[item]!r}: its title {title!r} has no tokens under this tokenizer"
            )
    return [slates.answer(item) for item in range(len(slates.text.titles))]


class CatalogueCollator:
    """Makes `CatalogueBatch`es of cases that rank the whole catalogue; every other case brings its own candidates.

    Args:
        trees: collates those others.
        slates: encodes prompts; one that leaves no room for the longest title loses its oldest history.
        pad: id that fills rows.
    """

    def __init__(self, trees: PromptTreeCollator, slates: SlateEncoder, pad: int) -> None:
        self.text, self.trees, self.slates, self.pad = slates.text, trees, slates, pad

    @cached_property
    def trie(self) -> CatalogueTrie:
        """The catalogue's tree, made at the first call.

        Raises:
            InputError: a title has no tokens.
        """
        return build_trie(catalogue_answers(self.slates))

    @property
    def item_tokens(self) -> ItemTokens | None:
        """Items that are tokens, for the model; None where they are words."""
        return self.slates.item_tokens

    def __call__(self, groups: Sequence[Sequence[Slate]]) -> CatalogueBatch | PromptTreeBatch:
        """Collates groups of slates.

        Raises:
            InputError: a case has no candidates, or a prompt is too long even without its history.
        """
        slates = [slate for group in groups for slate in group]
        if not all(slate.whole for slate in slates):
            return self.trees(groups)
        for slate in slates:
            if len(slate.candidates) == 0:
                raise InputError(f"user {slate.user!r} has no candidates")
        trie = self.trie
        encoded = self.slates.prompts(slates, trie.height)
        prompts = [made.prompt for made in encoded]
        length = torch.tensor([len(prompt) for prompt in prompts])
        token = torch.full((len(prompts), int(length.max())), self.pad)
        for row, prompt in zip(token, prompts, strict=True):
            row[-len(prompt) :] = torch.tensor(prompt)
        shared = shared_fields(self.text, slates)
        fed = int((trie.child_start[1:].diff() > 0).sum())  # the last token of an answer predicts nothing
        answer = trie.depth[trie.last[shared["branch_item"]]]
        return CatalogueBatch(
            **shared,
            prompt=token,
            prompt_length=length,
            trie=trie,
            tokens=int(length.sum()) + len(slates) * fed,
            tokens_unshared=int((length[shared["branch_case"]] + answer).sum()),
            truncated=sum(made.dropped > 0 for made in encoded),
        )
