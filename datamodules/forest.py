"""Token forests: sequences that share their beginnings, merged into trees in depth-first preorder.

Sorting sequences and looking at the common prefix of neighbours *is* the trie in preorder, so no tree is ever built.

# S sequences, T longest sequence, N tokens of the forest
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


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
    lengths = np.array([len(s) for s in sequences], dtype=np.int64)
    if len(lengths) == 0 or lengths.min() == 0:
        raise ValueError("a forest needs at least one sequence, and none may be empty")
    width = int(lengths.max())
    table = np.full((len(lengths), width), -1, dtype=np.int64)  # [S, T]; -1 sorts a prefix before its extensions
    table[np.arange(width) < lengths[:, None]] = np.fromiter(chain.from_iterable(sequences), np.int64, lengths.sum())

    order = np.lexsort(table.T[::-1])
    table, sorted_lengths = table[order], lengths[order]
    shared = np.zeros(len(order), dtype=np.int64)  # [S] tokens in common with the neighbour above
    if len(order) > 1:
        same = (table[1:] == table[:-1]) & (table[1:] >= 0)
        shared[1:] = np.cumprod(same, axis=1).sum(axis=1)

    added = sorted_lengths - shared
    start = np.concatenate(([0], np.cumsum(added)))  # [S + 1] first new token of each sequence
    column = np.arange(width)
    # The token of sequence s at depth t is new, or the one most recently added at that depth.
    node = np.where(column >= shared[:, None], start[:-1, None] + column - shared[:, None], -1)
    node = np.maximum.accumulate(node, axis=0)  # [S, T]
    on_path = column < sorted_lengths[:, None]
    new = (column >= shared[:, None]) & on_path

    total = int(start[-1])
    parent = np.full(total, -1, dtype=np.int64)
    parent[node[:, 1:][new[:, 1:]]] = node[:, :-1][new[:, 1:]]
    end = np.empty(total, dtype=np.int64)
    # Of repeated places the last assignment stays: the last sequence through a token says where its subtree ends.
    end[node[on_path]] = np.repeat(start[1:], sorted_lengths)
    paths = np.split(node[on_path], np.cumsum(sorted_lengths)[:-1])
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    return Forest(
        token=table[new],
        end=end,
        depth=np.broadcast_to(column, new.shape)[new],
        parent=parent,
        path=tuple(paths[s] for s in place.tolist()),
    )


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
