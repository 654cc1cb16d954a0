"""Retrieval by generation: beam search that can only spell titles of the catalogue.

The beams of a user are a part of the catalogue's tree: every step adds nodes behind the prompt, and a node sees its
ancestors among those of all steps. So prompts are encoded once, keys and values never move, and all users and beams
take a step together. A step is a choice: where a beginning can go on in one way only, the whole run of tokens up to the
next choice goes through the network at once. Python loops over steps alone.

# U users, S longest prompt, B beams, I items, T nodes of the tree, L children of all beams, N nodes of a step,
# M nodes of all steps, K nodes inside runs, D hidden, H items found
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from datamodules.contract.batch import CatalogueTrie
from recmodels.backbones.causal import CausalBackbone
from recmodels.retrieval.prompt_cache import EncodedPrompts, encode_prompts


@dataclass(frozen=True)
class Retrieved:
    """Items found, user by user, the best first; items of equal titles stand together.

    Attributes:
        user: `[H]` row of the prompt.
        item: `[H]` item code.
        score: `[H]` log-likelihood of the item's answer, as `recmodels.retrieval.exhaustive.catalogue_scores` gives it (or its
            mean over tokens).
        tokens: tokens that went through the network.
    """

    user: Tensor
    item: Tensor
    score: Tensor
    tokens: int


@torch.no_grad()
def beam_search(
    backbone: CausalBackbone,
    prompt: Tensor,
    prompt_length: Tensor,
    trie: CatalogueTrie,
    beams: int,
    *,
    candidate: Tensor | None = None,
    length_normalised: bool = False,
) -> Retrieved:
    """Finds the likeliest answers of the catalogue under each prompt.

    At every step a user's `beams` likeliest unfinished beginnings go on; finished answers are kept apart, and the best
    `beams` of them are returned. Probabilities are those of the whole vocabulary, so scores equal exhaustive ranking's,
    and with beams enough for all beginnings of a step so does the result. A user stops as soon as no unfinished
    beginning can overtake the last of `beams` finished answers: log-probabilities only fall. Beginnings of items that
    are no candidates take no beam.

    Args:
        backbone: the model.
        prompt: `[U, S]` ids, padded on the left.
        prompt_length: `[U]` real tokens of each prompt.
        trie: the catalogue, on the prompts' device.
        beams: beginnings that go on, and answers returned, for each user.
        candidate: `[U, I]` which items may be returned; None permits all.
        length_normalised: rank answers by the mean over their tokens. Beginnings compete by their sums all the same;
            what may still overtake is bounded by the longest answer.

    Returns:
        The items, each at most once for a user: those of the best min(`beams`, candidates' titles) titles.

    Raises:
        ValueError: `beams` is below 1.
    """
    if beams < 1:
        raise ValueError(f"beams is {beams}, must be at least 1")
    users = len(prompt)
    encoded = encode_prompts(backbone, prompt, prompt_length, closed=False)
    count = _candidates_before(trie, candidate, users)
    step = _Step.first(encoded.state)
    known, tokens = prompt_length.new_empty(users, 0), int(prompt_length.sum())
    best, best_node = step.score[:, :0], step.last[:, :0]  # finished answers so far and where they end
    while True:
        parent, child, value = step.children(backbone, trie, count)
        column = _by_user(parent // step.last.shape[1], users)  # [U, C] into the L children, -1 at padding
        child, value = child[column], value[column].masked_fill(column < 0, -torch.inf)

        ended = value.masked_fill(~_any(count, trie.item_start[child], trie.item_start[child + 1]), -torch.inf)
        best, index = torch.cat([best, ended / (trie.depth[child] + 1) if length_normalised else ended], 1).topk(
            min(beams, best.shape[1] + ended.shape[1])
        )
        best_node = torch.cat([best_node, child], 1).gather(1, index)

        below = _any(count, trie.item_start[child + 1], trie.item_start[trie.end[child]])
        score, index = value.masked_fill(~below, -torch.inf).topk(min(beams, value.shape[1]))
        if best.shape[1] == beams:  # a log-likelihood only falls, its mean at most towards that of the longest answer
            bound = score / trie.height if length_normalised else score
            score = score.masked_fill(bound <= best[:, -1:], -torch.inf)
        going = score > -torch.inf
        if not bool(going.any()):
            return _items(trie, best, best_node, candidate, tokens)
        width = int(going.sum(1).max())
        step, known = _advance(backbone, encoded, trie, known, child.gather(1, index[:, :width]), score[:, :width])
        tokens += step.tokens


@dataclass(frozen=True)
class _Step:
    """Beginnings that have just gone through the network.

    Attributes:
        state: `[N, D]` last hidden states of the step's nodes, user by user.
        last: `[U, B]` node that each beginning has reached, -1 before the first.
        index: `[U, B]` its index among these nodes.
        score: `[U, B]` log-likelihood up to the first node of the step; minus infinity where there is no beginning.
        inner: nodes `[K]` that follow in the runs, each with its beginning in the flattened `[U * B]`, and the index of
            its predecessor.
        tokens: nodes that went through the network.
    """

    state: Tensor
    last: Tensor
    index: Tensor
    score: Tensor
    inner: tuple[Tensor, Tensor, Tensor]
    tokens: int

    @classmethod
    def first(cls, state: Tensor) -> _Step:
        """Returns the prompts' states `[U, D]`: one empty beginning each."""
        index = torch.arange(len(state), device=state.device)[:, None]
        none = index[:0, 0]
        return cls(state, torch.full_like(index, -1), index, torch.zeros_like(index).float(), (none,) * 3, 0)

    def children(self, backbone: CausalBackbone, trie: CatalogueTrie, count: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Children `[L]` that lead to candidates, with their beginnings in `[U * B]` and their log-likelihoods."""
        start, open_ = trie.child_start[self.last + 1].flatten(), (self.score > -torch.inf).flatten()
        parent, index = _runs(start, (trie.child_start[self.last + 2].flatten() - start) * open_)
        child, user = trie.child[index], parent // self.last.shape[1]
        alive = count[user, trie.item_start[trie.end[child]]] > count[user, trie.item_start[child]]
        parent, child = parent[alive], child[alive]
        node, beginning, before = self.inner
        logp = backbone.log_probabilities(
            self.state,
            torch.cat([before, self.index.flatten()[parent]]),
            trie.token[torch.cat([node, child])],
        )
        reached = self.score.flatten().index_add(0, beginning, logp[: len(node)])
        return parent, child, reached[parent] + logp[len(node) :]


def _advance(
    backbone: CausalBackbone, encoded: EncodedPrompts, trie: CatalogueTrie, known: Tensor, node: Tensor, score: Tensor
) -> tuple[_Step, Tensor]:
    """Puts beginnings `[U, B]`, up to their next choice, through the network, behind the `[U, M]` nodes known."""
    users, width = node.shape
    going = (score > -torch.inf).flatten()
    size = (trie.stop[node] - node + 1).flatten() * going
    owner, fed = _runs(node.flatten(), size)  # all nodes, beginning by beginning
    column = _by_user(owner // width, users)  # [U, N]
    table = torch.where(column < 0, -1, fed[column])
    known = torch.cat([known, table], 1)
    seen = (known[:, None] <= table[..., None]) & (table[..., None] < trie.end[known][:, None]) & (known[:, None] >= 0)
    seen[..., -table.shape[1] :] |= torch.eye(table.shape[1], dtype=torch.bool, device=node.device)
    state = encoded.follow(backbone, trie.token[fed][None], trie.depth[known], seen, column)

    inside = fed != node.flatten()[owner]
    final = (size.cumsum(0) - 1).clamp(min=0)
    step = _Step(
        state=state[0],
        last=trie.stop[node],
        index=final.view(users, width),
        score=score,
        inner=(fed[inside], owner[inside], inside.nonzero().flatten() - 1),
        tokens=len(fed),
    )
    return step, known


def _candidates_before(trie: CatalogueTrie, candidate: Tensor | None, users: int) -> Tensor:
    """`[U, I + 1]` how many of the first items, in the order of the tree, are candidates."""
    if candidate is None:
        return torch.arange(len(trie.item) + 1, device=trie.item.device).expand(users, -1)
    return nn.functional.pad(candidate[:, trie.item].cumsum(1), (1, 0))


def _any(count: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """`[U, C]` whether a candidate is among the items from `low` to before `high`."""
    return count.gather(1, high) > count.gather(1, low)


def _runs(start: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the numbers of many runs, one run after the other, and the run that each belongs to."""
    run = torch.repeat_interleave(size)
    return run, torch.arange(len(run), device=run.device) + (start - size.cumsum(0) + size)[run]


def _by_user(user: Tensor, users: int) -> Tensor:
    """Lays `[L]` entries, sorted by user, out as a table: `[U, C]` indices of them, -1 at padding."""
    size = torch.bincount(user, minlength=users)
    column = torch.arange(int(size.max()), device=user.device)
    return torch.where(column < size[:, None], (size.cumsum(0) - size)[:, None] + column, -1)


def _items(trie: CatalogueTrie, best: Tensor, node: Tensor, candidate: Tensor | None, tokens: int) -> Retrieved:
    """Returns the candidates that end at the best nodes."""
    user, column = (best > -torch.inf).nonzero(as_tuple=True)
    start = trie.item_start[node[user, column]]
    run, index = _runs(start, trie.item_start[node[user, column] + 1] - start)
    item, score, user = trie.item[index], best[user, column][run], user[run]
    allowed = torch.ones_like(user, dtype=torch.bool) if candidate is None else candidate[user, item]
    return Retrieved(user=user[allowed], item=item[allowed], score=score[allowed], tokens=tokens)
