"""Forests against a trie built the slow way, from the set of all prefixes."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datamodules.tokens import forest as forests
from datamodules.tokens.forest import Forest, build_forest, build_forests, pack_rows, stretch_bounds

# A small alphabet and short sequences: repeats, and prefixes of one another, come by themselves.
SEQUENCES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=14)


def prefixes(sequences: list[list[int]]) -> set[tuple[int, ...]]:
    return {tuple(sequence[: n + 1]) for sequence in sequences for n in range(len(sequence))}


def spelled(forest: Forest) -> list[tuple[int, ...]]:
    """The tokens from the root to each token, by following parents."""
    words: list[tuple[int, ...]] = []
    for token, parent in zip(forest.token.tolist(), forest.parent.tolist(), strict=True):
        words.append((*(words[parent] if parent >= 0 else ()), token))
    return words


@given(SEQUENCES)
def test_each_path_spells_its_sequence_downwards(sequences: list[list[int]]) -> None:
    forest = build_forest(sequences)

    assert len(forest.path) == len(sequences)
    for sequence, path in zip(sequences, forest.path, strict=True):
        assert forest.token[path].tolist() == sequence
        assert forest.parent[path].tolist() == [-1, *path[:-1].tolist()]


@given(SEQUENCES)
def test_there_is_one_token_for_each_distinct_prefix(sequences: list[list[int]]) -> None:
    words = spelled(build_forest(sequences))

    assert len(words) == len(prefixes(sequences))
    assert set(words) == prefixes(sequences)


@given(SEQUENCES)
def test_depth_and_end_agree_with_the_brute_force_trie(sequences: list[list[int]]) -> None:
    forest = build_forest(sequences)
    words = spelled(forest)
    trie = prefixes(sequences)

    for place, word in enumerate(words):
        extensions = sum(other[: len(word)] == word for other in trie)
        assert forest.depth[place] == len(word) - 1
        assert forest.end[place] == place + extensions


@given(SEQUENCES)
def test_the_attention_rule_holds_exactly_for_ancestors_and_self(sequences: list[list[int]]) -> None:
    forest = build_forest(sequences)
    words = spelled(forest)

    for i, word in enumerate(words):
        seen = {j for j in range(len(words)) if j <= i < forest.end[j]}
        assert seen == {j for j, other in enumerate(words) if word[: len(other)] == other}


@given(SEQUENCES)
def test_tokens_stand_in_depth_first_preorder(sequences: list[list[int]]) -> None:
    parent = build_forest(sequences).parent.tolist()

    open_tokens: list[int] = []  # the path from the root to the previous token
    for place, above in enumerate(parent):
        while open_tokens and open_tokens[-1] != above:
            open_tokens.pop()
        assert above == (open_tokens[-1] if open_tokens else -1)
        open_tokens.append(place)


@given(SEQUENCES, st.randoms(use_true_random=False))
def test_order_of_input_only_relabels(sequences: list[list[int]], chance: random.Random) -> None:
    order = list(range(len(sequences)))
    chance.shuffle(order)
    one, other = build_forest(sequences), build_forest([sequences[i] for i in order])

    assert len(one.token) == len(other.token)
    renamed: dict[int, int] = {}
    for place, original in enumerate(order):
        for a, b in zip(one.path[original].tolist(), other.path[place].tolist(), strict=True):
            assert renamed.setdefault(a, b) == b
    assert sorted(renamed.values()) == list(range(len(other.token)))


def same(one: Forest, other: Forest) -> bool:
    columns = ("token", "end", "depth", "parent")
    return all(getattr(one, name).tolist() == getattr(other, name).tolist() for name in columns) and [
        path.tolist() for path in one.path
    ] == [path.tolist() for path in other.path]


@pytest.mark.parametrize("at_once", [1 << 20, 8])
@given(groups=st.lists(SEQUENCES, min_size=1, max_size=5), cut=st.integers(0, 6))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_several_trees_are_what_each_is_alone(
    monkeypatch: pytest.MonkeyPatch, at_once: int, groups: list[list[list[int]]], cut: int
) -> None:
    """Merged together, in one go or in several, and whatever part of a sequence counts as its head."""
    monkeypatch.setattr(forests, "_AT_ONCE", at_once)
    sequences = [sequence for group in groups for sequence in group]
    tree = [number for number, group in enumerate(groups) for _ in group]
    made = build_forests([s[:cut] for s in sequences], [s[cut:] for s in sequences], tree)

    assert len(made) == len(groups)
    assert all(same(one, build_forest(group)) for one, group in zip(made, groups, strict=True))


def test_heads_that_are_one_object_are_copied_once_and_to_all() -> None:
    head, other = [5, 6], [5, 7]
    made = build_forests([head, head, other, head], [[1], [2], [3], [4]], [0, 0, 1, 2])
    assert [one.token.tolist() for one in made] == [[5, 6, 1, 2], [5, 7, 3], [5, 6, 4]]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=20), st.integers(1, 60))
def test_runs_are_whole_trees_as_many_as_fit(sizes: list[int], budget: int) -> None:
    bounds = stretch_bounds(sizes, budget)
    ends = [sum(sizes[:n]) for n in range(len(sizes) + 1)]

    assert bounds[0] == 0
    assert bounds[-1] == ends[-1]
    assert set(bounds) <= set(ends)
    for begin, end in pairwise(bounds):
        trees = [size for at, size in zip(ends, sizes, strict=False) if begin <= at < end]
        assert len(trees) == 1 or sum(trees) <= budget
        following = next((size for at, size in zip(ends, sizes, strict=False) if at == end), None)
        assert following is None or sum(trees) + following > budget


def test_large_token_ids_and_long_common_beginnings() -> None:
    stem = list(range(100_000, 100_300))
    forest = build_forest([[*stem, 7], [*stem, 8], stem])

    assert len(forest.token) == 302
    assert forest.path[2].tolist() == list(range(300))
    assert forest.end[[0, 299, 300, 301]].tolist() == [302, 302, 301, 302]


@pytest.mark.parametrize("sequences", [[], [[]], [[1, 2], []]])
def test_nothing_to_merge_is_refused(sequences: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="at least one sequence"):
        build_forest(sequences)


@settings(max_examples=200)
@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 60))
def test_packing_places_every_tree_once_within_the_budget(sizes: list[int], budget: int) -> None:
    rows = pack_rows(sizes, budget)

    assert sorted(tree for row in rows for tree in row) == list(range(len(sizes)))
    for row in rows:
        assert row
        assert len(row) == 1 or sum(sizes[tree] for tree in row) <= budget


@given(st.lists(st.integers(1, 50), max_size=20), st.integers(1, 60))
def test_packing_leaves_no_two_rows_that_fit_into_one(sizes: list[int], budget: int) -> None:
    filled = [sum(sizes[tree] for tree in row) for row in pack_rows(sizes, budget)]

    assert all(a + b > budget for n, a in enumerate(filled) for b in filled[n + 1 :])


def test_large_trees_are_placed_first() -> None:
    rows = pack_rows([4, 4, 4, 6, 6, 6], budget=10)  # in the given order four rows would be needed

    assert sorted(sorted(row) for row in rows) == [[0, 3], [1, 4], [2, 5]]
