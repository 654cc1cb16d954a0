"""The contract between data and models: what a batch of each format holds.

A leaf: it imports nothing of this project, so that `recmodels` may read it.

# U test cases (users), B branches (candidate answers), R rows, N tokens a row, L labelled tokens, C candidates,
# I items of the catalogue, T nodes of its tree, S longest prompt
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Literal, TypeVar

import torch
from torch import Tensor

BatchFormat = Literal["prompt_tree", "tagged_text", "interactions", "sequences"]
"""How a model wants its cases: as token trees (for an encoder-decoder, trees of answers beside their prompts), as tagged
encoder texts, or as plain item numbers: with all training events at once (`interactions`) or with windows of them
(`sequences`)."""

Answers = Literal["candidates", "fixed", "ratings"]

SomeColumns = TypeVar("SomeColumns", bound="Columns")


@dataclass(frozen=True)
class Columns:
    """Tensors that move together."""

    def to(self: SomeColumns, device: torch.device | str) -> SomeColumns:
        """Moves every tensor; Lightning calls this on each batch."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def cpu(self: SomeColumns) -> SomeColumns:
        """Brings every tensor to the host, and waits for it."""
        return self._map(lambda tensor: tensor.cpu())

    def pin_memory(self: SomeColumns) -> SomeColumns:
        """Page-locks every tensor, so that the copy to a GPU overlaps with compute."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self: SomeColumns, change: Callable[[Tensor], Tensor]) -> SomeColumns:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return type(self)(**{k: change(v) if isinstance(v, Tensor) else v for k, v in values.items()})


@dataclass(frozen=True)
class Batch(Columns):
    """Cases and their candidate answers, whatever the model sees of them.

    Branches of one case stand together and cases stand in order, so `branch_case` is sorted.

    Attributes:
        case: `[U]` number of the case within its split; the key into per-user records.
        branch_case: `[B]` which case of this batch (0..U-1) a branch belongs to.
        branch_item: `[B]` item code of the branch, or its place among fixed answers (0 Yes, 1 No; 0 to 4 for ratings).
        relevance: `[B]` gain of the branch: 1 for the right answer, else 0. Those of `ratings` add up to one, and their
            mean answer is the rating: 3.5 is half 3 and half 4.
        answers: `candidates` to be ranked, `fixed` ones (Yes, No) to be told apart, or `ratings` from 1.
        rule: for each case the further rule (`protocol.also`) that its candidates follow, "" for the main one; empty
            where all follow the main one.
    """

    case: Tensor
    branch_case: Tensor
    branch_item: Tensor
    relevance: Tensor
    answers: Answers
    rule: tuple[str, ...] = field(default=(), kw_only=True)

    @property
    def targets(self) -> int:
        """Its cases."""
        return len(self.case)


@dataclass(frozen=True)
class PromptTreeBatch(Batch):
    """A forest of tokens in depth-first preorder, in one row without padding, with labels only where there is one.

    Token i may attend to token j exactly when `j <= i < end[j]`, at position `depth[i]`.

    Attributes:
        token: `[N]` input ids.
        end: `[N]` index after the last descendant.
        depth: `[N]` distance from the root, which is the position id.
        trunk: tokens at the front that begin every sequence, the ancestors of all others.
        stretches: bounds of runs of whole trees behind the trunk, from its end to N; none attends to another.
        label_place: `[L]` index of the predicting token, which is the label's parent.
        label_token: `[L]` id to be predicted there.
        label_branch: `[L]` branch (0..B-1) whose answer the label belongs to.
        tokens: N.
        tokens_unshared: tokens the same branches would take as separate sequences.
        truncated: prompts that lost their oldest history, because they exceed the backbone's context.
        owner: `[U]` number, within this batch, of the user whose case it is; empty where nobody counted.
    """

    token: Tensor
    end: Tensor
    depth: Tensor
    trunk: int
    stretches: tuple[int, ...]
    label_place: Tensor
    label_token: Tensor
    label_branch: Tensor
    tokens: int
    tokens_unshared: int
    truncated: int
    owner: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long), kw_only=True)


@dataclass(frozen=True)
class EncoderDecoderBatch(Batch):
    """Prompts for an encoder, each once, and forests of answers for a decoder, packed into rows of their own.

    The root of every decoder tree stands for the decoder's start token, whose id the model knows; below it the answers
    to one prompt share their beginnings, by the rule of `PromptTreeBatch`. A decoder row reads one encoder row, and in
    it a token reads the prompt of its tree alone.

    Attributes:
        prompt: `[E, S]` input ids of the encoder, several prompts in a row.
        prompt_segment: `[E, S]` a number that tells the prompts of a row apart; every padding token has its own.
        prompt_position: `[E, S]` position within the prompt.
        prompt_row: `[R]` encoder row that a decoder row reads.
        token: `[R, N]` input ids of the decoder; at depth 0 any id.
        end: `[R, N]` index after the last descendant, within the row.
        depth: `[R, N]` distance from the root, which is the position.
        segment: `[R, N]` the `prompt_segment` that a token reads.
        label_place: `[L]` place of the predicting token in the flattened `[R * N]` rows.
        label_token: `[L]` id to be predicted there.
        label_branch: `[L]` branch (0..B-1) whose answer the label belongs to.
        tokens: real tokens in all rows, without padding.
        tokens_unshared: tokens the same branches would take as separate pairs of prompt and answer.
        truncated: prompts that lost their oldest history, because they exceed the backbone's context.
    """

    prompt: Tensor
    prompt_segment: Tensor
    prompt_position: Tensor
    prompt_row: Tensor
    token: Tensor
    end: Tensor
    depth: Tensor
    segment: Tensor
    label_place: Tensor
    label_token: Tensor
    label_branch: Tensor
    tokens: int
    tokens_unshared: int
    truncated: int


BranchBatch = PromptTreeBatch | EncoderDecoderBatch
"""What a model that answers in text reads, by its kind of backbone."""


@dataclass(frozen=True)
class CatalogueTrie(Columns):
    """The answers of a whole catalogue as one tree of tokens, in depth-first preorder.

    A node stands for the answers that begin with the tokens on the way to it. Siblings have ascending tokens. Several
    items may end at one node (equal titles), and a node where an item ends may go on (`Alien` and `Aliens`).

    Attributes:
        token: `[T]` token of each node.
        end: `[T]` index after the last descendant.
        depth: `[T]` tokens before it in its answers.
        parent: `[T]` -1 for first tokens.
        child: `[T]` nodes ordered by parent; those of node j are
            `child[child_start[j + 1] : child_start[j + 2]]`, first tokens being the children of j = -1.
        child_start: `[T + 2]`.
        last: `[I]` node at which each item ends.
        item: `[I]` items in the order of `last`; those under node j are `item[item_start[j] : item_start[end[j]]]`,
            and those that end there `item[item_start[j] : item_start[j + 1]]`.
        item_start: `[T + 1]`.
        stop: `[T]` last node of the run that begins at each node: each next one is an only child where no item ends.
        height: tokens of the longest answer.
        key: sha256 of the tree; equal keys mean equal trees.
    """

    token: Tensor
    end: Tensor
    depth: Tensor
    parent: Tensor
    child: Tensor
    child_start: Tensor
    last: Tensor
    item: Tensor
    item_start: Tensor
    stop: Tensor
    height: int
    key: str


@dataclass(frozen=True)
class CatalogueBatch(Batch):
    """Prompts whose answers are the whole catalogue, but for the items that a case leaves out.

    Attributes:
        prompt: `[U, S]` input ids, padded on the left.
        prompt_length: `[U]` real tokens of each prompt.
        trie: the catalogue, one object for all batches. It stays on the host: a model keeps its own copy by `key`.
        tokens: tokens that score every item: the prompts, and every node with a successor under each of them.
        tokens_unshared: tokens the same branches would take as separate sequences.
        truncated: prompts that lost their oldest history.
    """

    prompt: Tensor
    prompt_length: Tensor
    trie: CatalogueTrie
    tokens: int
    tokens_unshared: int
    truncated: int


@dataclass(frozen=True)
class TaggedTextBatch(Batch):
    """Encoder texts, packed into rows, in which every token of a candidate is tagged RECOMMEND (1) or O (0).

    Attributes:
        token: `[R, N]` input ids.
        attention: `[R, N]` true at real tokens.
        segment: `[R, N]` a number that tells the texts of a row apart; every padding token has its own.
        position: `[R, N]` position within the text.
        branch: `[R, N]` branch (0..B-1) a token belongs to, -1 elsewhere (history, separators, padding).
        tokens: real tokens in the rows, without padding.
        truncated: texts that lost their oldest history, because they exceed the backbone's context.
    """

    token: Tensor
    attention: Tensor
    segment: Tensor
    position: Tensor
    branch: Tensor
    tokens: int
    truncated: int


@dataclass(frozen=True)
class InteractionBatch(Batch):
    """Plain item codes, for recommenders that know no text.

    Attributes:
        history: `[U, H]` item codes in time order, padded on the left with -1.
        user: `[U]` user code of each case; -1 for a user of whom there are no training events.
    """

    history: Tensor
    user: Tensor


@dataclass(frozen=True)
class SequenceBatch(Columns):
    """Windows of users' training events, for recommenders that learn from item codes by gradient descent.

    Attributes:
        user: `[W]` user code of each window.
        item: `[W, H]` item codes in time order, padded on the left with -1.
        own: `[W, H]` true at events that no other window owns; the others are their context.
        negative: `[W, H, N]` sampled items that are no training events of the user; of no meaning at padding.
    """

    user: Tensor
    item: Tensor
    own: Tensor
    negative: Tensor

    @property
    def targets(self) -> int:
        """The events that its windows own."""
        return int(self.own.sum())


@dataclass(frozen=True)
class EventBatch(Columns):
    """All training events as columns, for recommenders that count instead of descending a gradient.

    Attributes:
        user: `[E]` user code of each event, in time order within a user.
        item: `[E]` item code.
        users: number of users.
        items: size of the catalogue.
        titles: of all items, by item code.
    """

    user: Tensor
    item: Tensor
    users: int
    items: int
    titles: tuple[str, ...] = ()

    @property
    def targets(self) -> int:
        """Its events."""
        return len(self.item)
