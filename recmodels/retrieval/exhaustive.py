"""Exact scores of a whole catalogue: its tree of titles under each prompt, a few rows at a time.

The tree's nodes, in preorder, are cut into runs. A row holds one run, with the ancestors of its first node before it;
every node's ancestors then stand in its own row, so no row needs another. Prompts go through the network once, and
only nodes that predict something follow them.

# U users, S longest prompt, I items, T nodes of the tree, R rows, n tokens a row, D hidden
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from datamodules.contract.batch import CatalogueTrie
from recmodels.backbones.causal import CausalBackbone
from recmodels.engine.prompt_tree import log_sums
from recmodels.retrieval.prompt_cache import EncodedPrompts, encode_prompts


@torch.no_grad()
def catalogue_scores(
    backbone: CausalBackbone,
    prompt: Tensor,
    prompt_length: Tensor,
    trie: CatalogueTrie,
    *,
    row_tokens: int = 64,
    chunk_tokens: int = 512,
    among_allowed: bool = False,
) -> Tensor:
    """Returns the log-likelihood of every item's answer under each prompt.

    Memory beyond the result and `[U, T]` log-probabilities does not grow with the catalogue.

    Args:
        backbone: the model.
        prompt: `[U, S]` ids, padded on the left.
        prompt_length: `[U]` real tokens of each prompt.
        trie: the catalogue, on the prompts' device.
        row_tokens: nodes a row holds; at least the longest answer.
        chunk_tokens: nodes of all users that go through the network at once, as far as one row each permits.
        among_allowed: take each token's probability among those with which an answer can go on there.

    Returns:
        `[U, I]` in float32, summed over an answer's tokens.

    Raises:
        ValueError: a size is below 1.
    """
    if row_tokens < 1 or chunk_tokens < 1:
        raise ValueError(f"row_tokens is {row_tokens}, chunk_tokens {chunk_tokens}; both must be at least 1")
    encoded = encode_prompts(backbone, prompt, prompt_length, closed=True)
    users, nodes = len(prompt), len(trie.token)
    value = torch.zeros(users, nodes + 1, device=prompt.device)  # the last column stands before first tokens
    first = trie.child[: int(trie.child_start[1])]
    value[:, first] = _predicted(backbone, encoded.state[:, None], torch.zeros_like(first), trie.token[first])
    width = max(row_tokens, trie.height)
    for rows in _cut(trie, width, max(1, chunk_tokens // (users * width))):
        hidden = _row_states(backbone, encoded, trie, rows)
        value[:, rows.label] = _predicted(backbone, hidden, rows.parents(trie), trie.token[rows.label])
    if among_allowed:
        group = trie.parent + 1
        value[:, :-1] -= log_sums(value[:, :-1], group, nodes + 1)[:, group]
    return path_sums(value, trie.parent, trie.height)[:, trie.last]


def path_sums(value: Tensor, parent: Tensor, height: int) -> Tensor:
    """Returns sums `[U, T + 1]` of values on the way to each node, by doubling the way that is summed.

    `value` is zero in its last column; `parent` `[T]` is -1 for none; the longest way has `height` nodes.

    Example:
        >>> path_sums(torch.tensor([[1.0, 2, 4, 8, 0]]), torch.tensor([-1, 0, 1, -1]), 3).tolist()
        [[1.0, 3.0, 7.0, 8.0, 0.0]]
    """
    jump = torch.cat([parent, parent.new_full((1,), -1)]) % value.shape[1]  # -1 becomes the last column
    for _ in range((height - 1).bit_length()):
        value = value + value[:, jump]
        jump = jump[jump]
    return value


@dataclass(frozen=True)
class _Rows:
    """Some rows of the tree.

    Attributes:
        begin: `[R]` first node of each row's run.
        node: `[R, n]` nodes that go through the network, ancestors of `begin` first; -1 at padding.
        label: `[L]` nodes of all runs that a node of their row predicts, in preorder.
        rank: `[T]` nodes with a successor before each node.
    """

    begin: Tensor
    node: Tensor
    label: Tensor
    rank: Tensor

    def parents(self, trie: CatalogueTrie) -> Tensor:
        """Returns the index `[L]` of each label's parent in the flattened rows."""
        node, row = trie.parent[self.label], torch.searchsorted(self.begin, self.label, right=True) - 1
        begin = self.begin[row]
        inside = trie.depth[begin] + self.rank[node] - self.rank[begin]
        return row * self.node.shape[1] + torch.where(node >= begin, inside, trie.depth[node])


def _cut(trie: CatalogueTrie, width: int, rows: int) -> Iterator[_Rows]:
    """Cuts the tree into rows of `width` nodes that predict something, so many rows at a time."""
    feeds = trie.child_start[1:].diff() > 0
    fed = feeds.nonzero().flatten()
    rank = feeds.cumsum(0) - feeds.long()
    nodes, ranks, depths = fed.tolist(), rank.tolist(), trie.depth.tolist()
    begins = [0]
    while (after := ranks[begins[-1]] + width - depths[begins[-1]]) < len(nodes):
        begins.append(nodes[after])  # a run ends before the first node that finds no room
    bounds = torch.tensor([*begins, len(trie.token)], device=fed.device)
    for low in range(0, len(begins), rows):
        begin, end = bounds[:-1][low : low + rows], bounds[1:][low : low + rows]
        label = torch.arange(int(begin[0]), int(end[-1]), device=fed.device)
        label = label[trie.parent[label] >= 0]
        if len(label):
            index = rank[begin][:, None] + torch.arange(width, device=fed.device) - trie.depth[begin][:, None]
            run = fed[index.clamp(0, len(fed) - 1)]
            inside = (index >= rank[begin][:, None]) & (index < len(fed)) & (run < end[:, None])
            node = torch.where(inside, run, _ancestors(trie, begin, width))
            used = int((node >= 0).sum(1).max())
            yield _Rows(begin, node[:, :used], label, rank)


def _ancestors(trie: CatalogueTrie, node: Tensor, width: int) -> Tensor:
    """`[R, n]` the ancestors of R nodes, each in the column of its depth; -1 elsewhere."""
    table = torch.full((len(node), width), -1, device=node.device)
    row, node = torch.arange(len(node), device=node.device), trie.parent[node]
    while len(row := row[node >= 0]):
        node = node[node >= 0]
        table[row, trie.depth[node]] = node
        node = trie.parent[node]
    return table


def _row_states(backbone: CausalBackbone, encoded: EncodedPrompts, trie: CatalogueTrie, rows: _Rows) -> Tensor:
    """Returns hidden states `[U, R * n, D]` of rows under every prompt."""
    users = len(encoded.length)
    node, known = rows.node.clamp(min=0), rows.node >= 0
    above = (node[:, None, :] <= node[:, :, None]) & (node[:, :, None] < trie.end[node][:, None, :])
    seen = (above & known[:, None, :]) | torch.eye(node.shape[1], dtype=torch.bool, device=node.device)
    token, depth, seen = (
        part.repeat(users, *[1] * (part.dim() - 1)) for part in (trie.token[node], trie.depth[node], seen)
    )
    hidden = encoded.follow(backbone, token, depth, seen)
    return hidden.reshape(users, -1, hidden.shape[-1])


def _predicted(backbone: CausalBackbone, hidden: Tensor, position: Tensor, token: Tensor) -> Tensor:
    """Returns log-probabilities `[U, L]` of tokens `[L]` at positions `[L]` of `[U, N, D]` hidden states."""
    users = len(hidden)
    offset = torch.arange(users, device=position.device)[:, None] * hidden.shape[1]
    flat = (offset + position).flatten()
    return backbone.log_probabilities(hidden, flat, token.repeat(users)).view(users, -1)
