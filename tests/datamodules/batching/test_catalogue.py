"""The catalogue's tree against a trie built the slow way, and batches that rank the whole catalogue."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.batching.catalogue import CatalogueCollator, build_trie, catalogue_answers
from datamodules.batching.loaders import LoaderOptions
from datamodules.contract.batch import CatalogueBatch, PromptTreeBatch
from datamodules.contract.errors import InputError
from datamodules.datasets.movielens import MovieLens100K
from datamodules.instructions.prompts import SlateText
from datamodules.instructions.templates import find_template
from datamodules.protocol.rules import Protocol
from datamodules.sources.pretrained import load_tokenizer
from datamodules.tokens.chat import ChatEncoder
from datamodules.tokens.encoder import SlateEncoder
from tests.conftest import ITEMS
from tests.datamodules.options import grouped

# Few tokens and short answers: equal answers, and answers that begin others, come by themselves.
ANSWERS = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=5), min_size=1, max_size=12)
FULL = Protocol(candidates="full")


@given(ANSWERS)
def test_the_tree_is_the_trie_of_all_prefixes(answers: list[list[int]]) -> None:
    trie = build_trie(answers)
    words: list[tuple[int, ...]] = []
    for token, parent in zip(trie.token.tolist(), trie.parent.tolist(), strict=True):
        words.append((*(words[parent] if parent >= 0 else ()), token))
    assert words == sorted({tuple(answer[: n + 1]) for answer in answers for n in range(len(answer))})
    assert trie.depth.tolist() == [len(word) - 1 for word in words]
    assert trie.height == max(map(len, answers))
    for node, word in enumerate([(), *words], start=-1):
        children = trie.child[trie.child_start[node + 1] : trie.child_start[node + 2]].tolist()
        assert [words[child] for child in children] == [w for w in words if w[:-1] == word]
    for node, word in enumerate(words):
        below = trie.item[trie.item_start[node] : trie.item_start[trie.end[node]]].tolist()
        here = trie.item[trie.item_start[node] : trie.item_start[node + 1]].tolist()
        assert sorted(below) == [i for i, a in enumerate(answers) if tuple(a[: len(word)]) == word]
        assert here == [i for i, a in enumerate(answers) if tuple(a) == word]
    for node, stop in enumerate(trie.stop.tolist()):
        run = [node]
        while True:
            onward = trie.child[trie.child_start[run[-1] + 1] : trie.child_start[run[-1] + 2]].tolist()
            if len(onward) != 1 or onward[0] in trie.last.tolist():
                break
            run += onward
        assert list(range(node, stop + 1)) == run
    assert [words[node] for node in trie.last.tolist()] == [tuple(answer) for answer in answers]


@given(ANSWERS)
def test_the_key_names_the_tree(answers: list[list[int]]) -> None:
    assert build_trie(answers).key == build_trie([list(a) for a in answers]).key
    assert build_trie(answers).key != build_trie([*answers, [1]]).key


def test_no_answer_and_empty_answers_are_refused() -> None:
    for answers in ([], [[1], []]):
        with pytest.raises(ValueError, match="at least one sequence"):
            build_trie(answers)


@pytest.mark.parametrize("blank", ["", "  ", "\u202e\n"])
def test_a_title_without_tokens_is_named_with_its_item(tiny_causal: Path, blank: str) -> None:
    text = SlateText(["Night", blank], find_template("matching.en.1"), MovieLens100K.words["en"], ["a1", "b7"])
    slates = SlateEncoder(text, ChatEncoder(load_tokenizer(str(tiny_causal))), 512)
    with pytest.raises(InputError, match=r"item 'b7': its title .* has no tokens"):
        catalogue_answers(slates)


def batches(folder: Path, protocol: Protocol, **options: object) -> list[object]:
    return list(MovieLens100K(backbone=str(folder), protocol=protocol, **grouped(**options)).test_dataloader())  # type: ignore[arg-type]


def test_whole_catalogues_share_one_tree_and_lists_stay_trees(mini_data: Path, tiny_causal: Path) -> None:
    full = batches(tiny_causal, FULL)
    assert len(full) == 3
    assert all(isinstance(batch, CatalogueBatch) for batch in full)
    assert len({id(batch.trie) for batch in full}) == 1  # type: ignore[attr-defined]
    for protocol, task in ((Protocol(negatives=6), "matching"), (FULL, "reranking"), (FULL, "like")):
        assert isinstance(batches(tiny_causal, protocol, task=task)[0], PromptTreeBatch)
    data = MovieLens100K(backbone=str(tiny_causal), protocol=FULL)
    data.setup()
    assert isinstance(next(iter(data.train_dataloader())), PromptTreeBatch)


def test_prompts_and_columns_are_those_of_trees(mini_data: Path, tiny_causal: Path, titles: list[str]) -> None:
    data = MovieLens100K(backbone=str(tiny_causal), protocol=FULL, loader=LoaderOptions(eval_batch_size=5))
    batch = next(iter(data.test_dataloader()))
    slates = [data.slates.evaluation(data.sequences.test, int(case)) for case in batch.case]
    trees = data.collator([[slate] for slate in slates])
    for name in ("case", "branch_case", "branch_item", "relevance"):
        assert (getattr(batch, name) == getattr(trees, name)).all()
    made = data.collator.slates.encode(slates)  # type: ignore[union-attr]
    for row, length, one in zip(batch.prompt.tolist(), batch.prompt_length.tolist(), made, strict=True):
        assert row[-length:] == one.prompt
        assert set(row[:-length]) <= {load_tokenizer(str(tiny_causal)).pad_token_id}
    assert len(batch.trie.last) == ITEMS
    assert batch.trie.last[4] == batch.trie.last[5]  # two items of one title
    assert batch.tokens_unshared == trees.tokens_unshared
    predicting = len(set(batch.trie.parent.tolist()) - {-1})
    assert batch.tokens == sum(len(one.prompt) for one in made) + 5 * predicting


def test_a_prompt_leaves_room_for_the_longest_title_or_loses_its_oldest_history(
    mini_data: Path, tiny_causal: Path
) -> None:
    data = MovieLens100K(backbone=str(tiny_causal), protocol=FULL)
    data.setup()
    collate = data.collator
    assert isinstance(collate, CatalogueCollator)
    slate = data.slates.evaluation(data.sequences.test, 0)
    whole = collate([[slate]])
    height = whole.trie.height
    context = int(whole.prompt_length) + height - 1
    collate.slates.context = context
    assert collate([[slate]]).prompt_length == whole.prompt_length
    assert whole.truncated == 0
    collate.slates.context = context - 1
    shorter = collate([[slate]])
    assert int(shorter.prompt_length) + height - 1 < context
    assert shorter.truncated == 1
    [expected] = collate.slates.prompts([slate.without_oldest(1)], height)
    assert shorter.prompt[0].tolist() == expected.prompt
    collate.slates.context = height + 2
    with pytest.raises(InputError, match=r"user '.*': the prompt is .* even without its history"):
        collate([[slate]])
    with pytest.raises(InputError, match="has no candidates"):
        collate([[replace(slate, candidates=slate.candidates[:0])]])


def test_requests_without_candidates_rank_the_catalogue(mini_data: Path, tiny_causal: Path, users_file: Path) -> None:
    data = MovieLens100K(backbone=str(tiny_causal), predict_file=users_file)
    one, other = data.predict_dataloader()
    assert isinstance(one, CatalogueBatch)
    assert sorted(one.branch_item.tolist()) == list(range(3, ITEMS))
    assert isinstance(other, PromptTreeBatch)


def test_workers_hand_over_the_same_tree(mini_data: Path, tiny_causal: Path) -> None:
    alone = batches(tiny_causal, FULL)
    worked = batches(tiny_causal, FULL, num_workers=1)
    for one, other in zip(alone, worked, strict=True):
        assert one.trie.key == other.trie.key  # type: ignore[attr-defined]
        assert (one.prompt == other.prompt).all()  # type: ignore[attr-defined]


def test_an_item_whose_title_has_no_tokens_fails_where_the_catalogue_is_ranked(
    mini_data: Path, tiny_causal: Path
) -> None:
    data = MovieLens100K(backbone=str(tiny_causal), protocol=FULL)
    data.setup()
    data.frozen.text.titles[3] = "\u200b"
    with pytest.raises(InputError, match="item '4': its title"):
        data.test_dataloader()


@pytest.mark.slow
def test_a_hundred_thousand_titles_build_in_seconds() -> None:
    rng = np.random.default_rng(0)
    words = rng.zipf(1.3, size=(100_000, 12)) % 20_000
    answers = [[*row[:size].tolist(), 2] for row, size in zip(words, rng.integers(1, 12, 100_000), strict=True)]
    began = time.process_time()
    trie = build_trie(answers)
    assert time.process_time() - began < 10
    assert len(trie.last) == 100_000
    for item in rng.integers(0, 100_000, 200).tolist():
        node, spelled = int(trie.last[item]), []
        while node >= 0:
            spelled.append(int(trie.token[node]))
            node = int(trie.parent[node])
        assert spelled[::-1] == answers[item]


def test_json_requests_name_the_whole_catalogue(mini_data: Path, tiny_causal: Path, tmp_path: Path) -> None:
    path = tmp_path / "all.jsonl"
    path.write_text(json.dumps({"history": ["1"], "candidates": None}))
    [batch] = MovieLens100K(backbone=str(tiny_causal), predict_file=path).predict_dataloader()
    assert isinstance(batch, CatalogueBatch)
    assert len(batch.branch_item) == ITEMS - 1
