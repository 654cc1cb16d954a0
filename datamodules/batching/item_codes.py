"""Windows of training events as item codes, for recommenders that know no text and learn by gradient descent.

# W windows, H events of the longest one, N negatives
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datamodules.batching.loaders import Collator, TrainingBatches
from datamodules.contract.batch import Batch, BatchFormat, EventBatch, InteractionBatch, SequenceBatch
from datamodules.contract.errors import InputError
from datamodules.contract.items import ItemTokens
from datamodules.instructions.prompts import SlateText, shared_fields
from datamodules.instructions.slates import Ints, Slate, SlateMaker
from datamodules.items.base import ItemForm
from datamodules.items.vectors import read_item_vectors
from datamodules.protocol.sequences import Sequences

ALL_UP_TO, SAMPLED = 100_000, 8192
"""Items that a softmax is taken over in training, and how many are drawn of more."""


@dataclass(frozen=True)
class ItemWindowBatches:
    """Makes `SequenceBatch`es of (epoch, window) keys.

    A window holds its own targets and before them as many events as the protocol's history allows. Each training event
    is owned by exactly one window of its user, so an epoch trains on each of them once. One negative is drawn even
    where the slates need none.

    Attributes:
        slates: know the events and the windows.
    """

    slates: SlateMaker

    def __call__(self, keys: Sequence[tuple[int, int]]) -> SequenceBatch:
        """The batch of some windows.

        Raises:
            InputError: a user has chosen nearly every item, so that no negative is left.
        """
        windows, sequences = self.slates.windows, self.slates.sequences
        rows = [self._bounds(window) for _, window in keys]
        width, negatives = max(last - begin for begin, _, last in rows), max(1, self.slates.negatives)
        user = windows.user[[window for _, window in keys]]
        item = np.full((len(keys), width), -1, dtype=np.int64)
        own = np.zeros(item.shape, dtype=bool)
        negative = np.zeros((*item.shape, negatives), dtype=np.int64)
        for row, ((epoch, window), (begin, first, last)) in enumerate(zip(keys, rows, strict=True)):
            item[row, begin - last :] = sequences.item[begin:last]
            own[row, first - last :] = True
            seen = sequences.item[sequences.start[user[row]] : sequences.train_end[user[row]]]
            drawn = draw_unseen(
                np.random.default_rng((self.slates.seed, epoch, window)),
                seen,
                len(sequences.item_ids),
                (last - begin) * negatives,
            )
            if drawn is None:
                raise InputError(f"user {sequences.user_ids[user[row]]!r} leaves too few items for negatives")
            negative[row, begin - last :] = drawn.reshape(-1, negatives)
        columns = (torch.from_numpy(column) for column in (user, item, own, negative))
        return SequenceBatch(*columns)

    def _bounds(self, window: int) -> tuple[int, int, int]:
        """Places of the first event shown, the first one owned, and one past the last."""
        windows, sequences = self.slates.windows, self.slates.sequences
        user, first, last = int(windows.user[window]), int(windows.first[window]), int(windows.last[window])
        start = int(sequences.start[user])
        # A user's very first event has nothing before it; the first window owns it beside its own targets.
        return max(start, last - 1 - self.slates.history), start if first == start + 1 else first, last


def draw_unseen(rng: np.random.Generator, seen: Ints, items: int, count: int) -> Ints | None:
    """Uniform items that a user has not seen, with repetition; None where hardly any is left.

    Example:
        >>> draw_unseen(np.random.default_rng(0), np.array([0, 2]), 4, 200).tolist().count(2)
        0
        >>> draw_unseen(np.random.default_rng(0), np.arange(4), 4, 1) is None
        True
    """
    drawn = rng.integers(items, size=count)
    for _ in range(100):
        bad = np.flatnonzero(np.isin(drawn, seen))
        if len(bad) == 0:
            return drawn
        drawn[bad] = rng.integers(items, size=len(bad))
    return None


def training_batches(form: BatchFormat, slates: SlateMaker, collate: Collator) -> Callable[[Any], Any]:
    """What makes training batches of (epoch, window) keys in a format."""
    return ItemWindowBatches(slates) if form == "sequences" else TrainingBatches(slates, collate)


class InteractionCollator:
    """Makes `InteractionBatch`es: item codes only.

    Args:
        text: knows the gains.
        user_ids: ids by user code.
    """

    def __init__(self, text: SlateText, user_ids: Sequence[str] = ()) -> None:
        self.text = text
        self.users = {user: code for code, user in enumerate(user_ids)}

    def __call__(self, groups: Sequence[Sequence[Slate]]) -> Batch:
        """Collates groups of slates."""
        slates = [slate for group in groups for slate in group]
        width = max(1, *(len(slate.history) for slate in slates))
        history = torch.full((len(slates), width), -1)
        for row, slate in zip(history, slates, strict=True):
            if len(slate.history):
                row[-len(slate.history) :] = torch.from_numpy(np.ascontiguousarray(slate.history))
        user = torch.tensor([self.users.get(slate.user, -1) for slate in slates])
        return InteractionBatch(**shared_fields(self.text, slates), history=history, user=user)


def training_events(sequences: Sequences, _: object = None) -> EventBatch:
    """All training events as one batch, whatever keys a loader asks for."""
    user, seen = sequences.owner, sequences.trained
    return EventBatch(
        user=torch.from_numpy(user[seen]),
        item=torch.from_numpy(sequences.item[seen]),
        users=len(sequences.user_ids),
        items=len(sequences.item_ids),
        titles=tuple(sequences.titles),
    )


def with_form(tokens: ItemTokens | None, form: ItemForm, sequences: Sequences) -> ItemTokens | None:
    """Gives item tokens what their form asks for: training events, or a file, to start from, and a sampled softmax.

    Raises:
        InputError: the file does not hold a vector of every item.
    """
    if tokens is None:
        return None
    count = len(tokens.titles)
    sampled = form.sampled or (count if count <= ALL_UP_TO else SAMPLED)
    tokens = replace(tokens, sampled=sampled if sampled < count else None)
    if tokens.start in ("title", "random"):
        return tokens
    if tokens.start == "events":
        return replace(tokens, events=training_events(sequences))
    return replace(tokens, vectors=read_item_vectors(Path(tokens.start).expanduser(), sequences.item_ids))
