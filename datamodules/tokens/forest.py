"""Token forests: sequences that share their beginnings, merged into trees in depth-first preorder.

Sorting sequences and looking at the common prefix of neighbours *is* the trie in preorder, so no tree is ever built.

# S sequences, T longest sequence, G trees, N tokens of the forest
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

_AT_ONCE = 1 << 20  # cells of the table of sequences beyond which trees are merged in two goes


@dataclass(frozen=True)
class Forest:
    """Merged sequences.

    Attributes:
        token: `[N]` token ids in depth-first preorder.
        end: `[N]` index after the last descendant of each token.
        depth: `[N]` distance from the root.
        parent: `[N]` index of the parent, -1 for a root.
        path: for each of the S given sequences, `[T_s]` the forest index of each of its tokens.
    """

    token: Ints
    end: Ints
    depth: Ints
    parent: Ints
    path: tuple[Ints, ...]


def build_forest(sequences: Sequence[Sequence[int]]) -> Forest:
    """Merges token sequences by their common prefixes.

    Args:
        sequences: S token sequences, in any order, repeats allowed, none empty.

    Returns:
        The forest; `path[s]` leads from the root to the last token of sequence s.

    Raises:
        ValueError: a sequence is empty, or there is none.

    Example:
        >>> forest = build_forest([[5, 6, 7], [5, 6, 8], [5, 9]])
        >>> forest.token.tolist(), forest.end.tolist(), forest.depth.tolist()
        ([5, 6, 7, 8, 9], [5, 4, 3, 4, 5], [0, 1, 2, 2, 1])
        >>> [path.tolist() for path in forest.path]
        [[0, 1, 2], [0, 1, 3], [0, 4]]
    """
    if not sequences:
        raise ValueError("a forest needs at least one sequence, and none may be empty")
    return build_forests([()] * len(sequences), sequences, [0] * len(sequences))[0]


def build_forests(
    heads: Sequence[Sequence[int]], tails: Sequence[Sequence[int]], tree: Sequence[int] | Ints
) -> list[Forest]:
    """Merges the sequences of several trees, all trees at once.

    Args:
        heads: S beginnings of sequences (prompts); many may be one object.
        tails: S ends of sequences (answers). A head and its tail are not both empty.
        tree: `[S]` which tree a sequence belongs to; 0..G-1, ascending, none left out.

    Returns:
        G forests.

    Raises:
        ValueError: a sequence is empty.

    Example:
        >>> prompt = [5, 6]
        >>> first, second = build_forests([prompt, prompt, [7]], [[8], [9], []], [0, 0, 1])
        >>> first.token.tolist(), first.end.tolist(), second.token.tolist()
        ([5, 6, 8, 9], [4, 4, 3, 4], [7])
    """
    head = np.fromiter(map(len, heads), dtype=np.int64, count=len(heads))
    length = head + np.fromiter(map(len, tails), dtype=np.int64, count=len(tails))
    if length.min() == 0:
        raise ValueError("a forest needs at least one sequence, and none may be empty")
    tree = np.asarray(tree) - tree[0]
    column = np.arange(int(length.max()))
    if len(heads) * len(column) > _AT_ONCE and tree[-1] > 0:
        half = int(np.searchsorted(tree, (tree[-1] + 1) // 2))
        return [
            *build_forests(heads[:half], tails[:half], tree[:half]),
            *build_forests(heads[half:], tails[half:], tree[half:]),
        ]
    table = np.full((len(heads), len(column)), -1, dtype=np.int64)  # [S, T]
    begin = 0
    for number in range(1, len(heads) + 1):
        if number == len(heads) or heads[number] is not heads[begin]:
            table[begin:number, : head[begin]] = heads[begin]
            begin = number
    inside = (column >= head[:, None]) & (column < length[:, None])
    table[inside] = np.fromiter(chain.from_iterable(tails), dtype=np.int64)
    return _merge(table, length, tree)


def _merge(table: Ints, length: Ints, tree: Ints) -> list[Forest]:
    """As `build_forests`, of `[S, T]` ids with -1 after each sequence's end and `[S]` their lengths."""
    count, width = table.shape
    # Rows as big-endian bytes compare as the sequences do: -1 becomes 0 and sorts a prefix before its extensions.
    key = np.empty((count, width + 1), dtype=">u4")
    key[:, 0], key[:, 1:] = tree, table + 1
    raw, size = key.tobytes(), 4 * (width + 1)
    rows = [raw[begin : begin + size] for begin in range(0, len(raw), size)]
    order = np.array(sorted(range(count), key=rows.__getitem__))
    table, length = table[order], length[order]  # a sequence stays among those of its tree

    shared = np.zeros(count + 1, dtype=np.int64)  # [S + 1] tokens in common with the neighbour above
    same = (table[1:] == table[:-1]) & (table[1:] >= 0) & (tree[1:] == tree[:-1])[:, None]
    shared[1:-1] = np.where(same.all(axis=1), width, same.argmin(axis=1))
    start = np.concatenate(([0], np.cumsum(length - shared[:-1])))  # [S + 1] first new token of each sequence
    column = np.arange(width)
    real, new = column < length[:, None], column >= shared[:-1, None]
    # The token of sequence s at depth t is new, or the one most recently added at that depth.
    node = np.where(new, (start[:-1] - shared[:-1])[:, None] + column, -1)
    node = np.maximum.accumulate(node, axis=0)  # [S, T]
    new &= real
    token, depth = table[new], np.broadcast_to(column, new.shape)[new]
    # The last sequence through a token, which the next one does not share, says where the token's subtree ends.
    last = real & (column >= shared[1:, None])
    end, parent = np.empty_like(token), np.full_like(token, -1)
    end[node[last]] = np.repeat(start[1:], last.sum(axis=1))
    parent[node[:, 1:][new[:, 1:]]] = node[:, :-1][new[:, 1:]]

    root = start[:-1][np.append(0, np.flatnonzero(np.diff(tree)) + 1)]  # [G] first token of each tree
    bounds = np.append(root, start[-1])
    base = np.repeat(root, np.diff(bounds))  # [N]
    node, end, parent = node - root[tree][:, None], end - base, np.maximum(parent - base, -1)

    path: list[Ints] = [token] * count
    for row, original, steps in zip(node, order.tolist(), length.tolist(), strict=True):
        path[original] = row[:steps]
    cuts = np.searchsorted(tree, np.arange(len(bounds))).tolist()
    return [
        Forest(token[begin:stop], end[begin:stop], depth[begin:stop], parent[begin:stop], tuple(path[first:last]))
        for (begin, stop), (first, last) in zip(pairwise(bounds.tolist()), pairwise(cuts), strict=True)
    ]


def stretch_bounds(sizes: Sequence[int], budget: int) -> list[int]:
    """Cuts trees that stand side by side into runs of at most `budget` tokens; a larger tree is a run of its own.

    Returns:
        Bounds of the runs, from 0 to the number of tokens.

    Example:
        >>> stretch_bounds([90, 100, 80, 300, 20], budget=200)
        [0, 190, 270, 570, 590]
    """
    bounds, end = [0], 0
    for size in sizes:
        if end + size - bounds[-1] > budget and end > bounds[-1]:
            bounds.append(end)
        end += size
    return [*bounds, end]


def pack_rows(sizes: Sequence[int], budget: int) -> list[list[int]]:
    """Assigns trees to rows, first fit by decreasing size, so that little is padded.

    Args:
        sizes: tokens of each tree.
        budget: tokens a row may hold; a larger tree gets a row of its own.

    Returns:
        For each row the indices of its trees.

    Example:
        >>> pack_rows([300, 120, 180, 90], budget=300)
        [[0], [2, 1], [3]]
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for tree in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        fit = next((r for r, left in enumerate(room) if left >= sizes[tree]), None)
        if fit is None:
            rows.append([tree])
            room.append(max(budget, sizes[tree]) - sizes[tree])
        else:
            rows[fit].append(tree)
            room[fit] -= sizes[tree]
    return rows
