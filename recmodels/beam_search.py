"""Retrieval by generation: beam search that can only spell titles of the catalogue.

The beams of a user are one more tree: every step adds its tokens behind the prompt's, and a beam sees its own
ancestors among them. So prompts are encoded once, keys and values never move, and all users and beams take a step
together; Python loops over steps alone.

# U users, S longest prompt, B beams, I items, T nodes of the tree, L children of all beams, N tokens of earlier steps,
# D hidden, H items found
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from datamodules.batch import CatalogueTrie
from recmodels.causal import CausalBackbone
from recmodels.prompt_cache import encode_prompts
from recmodels.prompt_tree import label_log_probabilities


@dataclass(frozen=True)
class Retrieved:
    """Items found, user by user, the best first; items of equal titles stand together.

    Attributes:
        user: `[H]` row of the prompt.
        item: `[H]` item code.
        score: `[H]` log-likelihood of the item's answer, as `recmodels.catalogue.catalogue_scores` gives it (or its
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
    and with beams enough for all beginnings of one length so does the result. A user stops as soon as no unfinished
    beginning can overtake the last of `beams` finished answers: log-probabilities only fall. Beginnings of items that
    are no candidates take no beam.

    Args:
        backbone: the model.
        prompt: `[U, S]` ids, padded on the left.
        prompt_length: `[U]` real tokens of each prompt.
        trie: the catalogue, on the prompts' device.
        beams: beginnings that go on, and answers returned, for each user.
        candidate: `[U, I]` which items may be returned; None permits all.
        length_normalised: rank answers by the mean over their tokens. Beginnings of one step have one length, so they
            compete by their sums all the same; what may still overtake is bounded by the longest answer.

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
    state, tokens = encoded.state[:, None], int(prompt_length.sum())
    node, score = prompt_length.new_full((users, 1), -1), torch.zeros(users, 1, device=prompt.device)
    seen = torch.zeros(users, 1, 0, dtype=torch.bool, device=prompt.device)
    depth = node[:, :0]  # of the tokens of earlier steps
    best, found = score[:, :0], node[:, :0]  # finished answers so far and where they end
    for length in range(1, trie.height + 1):
        parent, child = _children(trie, node, score, count)
        value = score.flatten()[parent] + label_log_probabilities(state, backbone.head, parent, trie.token[child])
        column = _by_user(parent // node.shape[1], users)  # [U, C] into the L children, -1 at padding
        child, parent = child[column], parent[column] % node.shape[1]
        value = value[column].masked_fill(column < 0, -torch.inf)

        ended = value.masked_fill(~_any(count, trie.item_start[child], trie.item_start[child + 1]), -torch.inf)
        best, place = torch.cat([best, ended / length if length_normalised else ended], 1).topk(
            min(beams, best.shape[1] + ended.shape[1])
        )
        found = torch.cat([found, child], 1).gather(1, place)

        below = _any(count, trie.item_start[child + 1], trie.item_start[trie.end[child]])
        score, place = value.masked_fill(~below, -torch.inf).topk(min(beams, value.shape[1]))
        if best.shape[1] == beams:  # a log-likelihood only falls, its mean at most towards that of the longest answer
            bound = score / trie.height if length_normalised else score
            score = score.masked_fill(bound <= best[:, -1:], -torch.inf)
        going = score > -torch.inf
        if not bool(going.any()):
            break
        width = int(going.sum(1).max())
        score, node = score[:, :width], child.gather(1, place[:, :width])
        seen = seen.gather(1, parent.gather(1, place[:, :width])[..., None].expand(-1, -1, seen.shape[2]))
        seen = torch.cat([seen, torch.eye(width, dtype=torch.bool, device=seen.device).expand(users, -1, -1)], -1)
        depth = torch.cat([depth, trie.depth[node]], 1)
        state = encoded.follow(backbone, trie.token[node], depth, seen)
        tokens += int(going.sum())
    return _items(trie, best, found, candidate, tokens)


def _candidates_before(trie: CatalogueTrie, candidate: Tensor | None, users: int) -> Tensor:
    """`[U, I + 1]` how many of the first items, in the order of the tree, are candidates."""
    if candidate is None:
        return torch.arange(len(trie.item) + 1, device=trie.item.device).expand(users, -1)
    return nn.functional.pad(candidate[:, trie.item].cumsum(1), (1, 0))


def _any(count: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """`[U, C]` whether a candidate is among the items from `low` to before `high`."""
    return count.gather(1, high) > count.gather(1, low)


def _children(trie: CatalogueTrie, node: Tensor, score: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Children `[L]` of all beams that lead to candidates, beam by beam, each with its beam in the flattened `[U, B]`."""
    start, open_ = trie.child_start[node + 1].flatten(), (score > -torch.inf).flatten()
    beam, place = _runs(start, (trie.child_start[node + 2].flatten() - start) * open_)
    child, user = trie.child[place], beam // node.shape[1]
    alive = count[user, trie.item_start[trie.end[child]]] > count[user, trie.item_start[child]]
    return beam[alive], child[alive]


def _runs(start: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """The numbers of many runs, one run after the other, and the run that each belongs to."""
    run = torch.repeat_interleave(size)
    return run, torch.arange(len(run), device=run.device) + (start - size.cumsum(0) + size)[run]


def _by_user(user: Tensor, users: int) -> Tensor:
    """Lays `[L]` entries, sorted by user, out as a table: `[U, C]` indices of them, -1 at padding."""
    size = torch.bincount(user, minlength=users)
    column = torch.arange(int(size.max()), device=user.device)
    return torch.where(column < size[:, None], (size.cumsum(0) - size)[:, None] + column, -1)


def _items(trie: CatalogueTrie, best: Tensor, found: Tensor, candidate: Tensor | None, tokens: int) -> Retrieved:
    """The candidates that end at the nodes found."""
    user, place = (best > -torch.inf).nonzero(as_tuple=True)
    start = trie.item_start[found[user, place]]
    run, index = _runs(start, trie.item_start[found[user, place] + 1] - start)
    user, item, score = user[run], trie.item[index], best[user, place][run]
    kept = torch.ones_like(user, dtype=torch.bool) if candidate is None else candidate[user, item]
    return Retrieved(user=user[kept], item=item[kept], score=score[kept], tokens=tokens)
