"""Batches, read back by their own rules and compared with prompts and answers encoded one by one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datamodules.batching.item_codes import InteractionCollator
from datamodules.batching.prompt_trees import PromptTreeCollator, common_beginning
from datamodules.batching.tagged_text import TaggedTextCollator
from datamodules.contract.batch import InteractionBatch, PromptTreeBatch, TaggedTextBatch
from datamodules.contract.errors import InputError
from datamodules.datasets.movielens import MovieLens100K
from datamodules.instructions.prompts import SlateText
from datamodules.instructions.slates import Slate, SlateMaker
from datamodules.instructions.templates import find_template
from datamodules.items.base import clean_title
from datamodules.protocol.apply import apply_protocol
from datamodules.protocol.rules import Protocol
from datamodules.protocol.sequences import Sequences
from datamodules.sources.pretrained import load_tokenizer
from datamodules.tables.interactions import Interactions
from datamodules.tokens.chat import ChatEncoder
from datamodules.tokens.encoder import SlateEncoder

TWINS, MARKED = (4, 5), 6  # two items of one title, and a title that looks like control tokens
FORMS = ("matching.en.1", "reranking.en.2", "like.en.1", "matching.zh.3")
Branch = tuple[list[int], list[int]]
"""Ids of the prompt with the answer's earlier tokens before the last one, and ids of the answer."""


@pytest.fixture
def data(mini_data: Path) -> Interactions:
    return MovieLens100K().read()


@pytest.fixture
def protocol() -> Protocol:
    return Protocol(negatives=7)


@pytest.fixture
def sequences(data: Interactions, protocol: Protocol) -> Sequences:
    return apply_protocol(data, protocol)


@pytest.fixture
def maker(sequences: Sequences, protocol: Protocol) -> SlateMaker:
    return SlateMaker(sequences, protocol, negatives=3, targets=4, seed=0)


@pytest.fixture
def encoder(tiny_causal: Path) -> ChatEncoder:
    return ChatEncoder(load_tokenizer(str(tiny_causal)))


def text_of(sequences: Sequences, name: str) -> SlateText:
    template = find_template(name)
    return SlateText(sequences.titles, template, MovieLens100K.words[template.language], sequences.item_ids)


def shared_by_all(prompts: list[list[int]]) -> int:
    """Tokens that all begin with, counted column by column."""
    count = 0
    while all(len(prompt) > count and prompt[count] == prompts[0][count] for prompt in prompts):
        count += 1
    return count


def tree_collator(
    sequences: Sequences,
    encoder: ChatEncoder,
    name: str = "matching.en.1",
    context: int = 10_000,
    row_tokens: int = 400,
) -> PromptTreeCollator:
    return PromptTreeCollator(SlateEncoder(text_of(sequences, name), encoder, context), row_tokens)


def evaluation_slates(maker: SlateMaker, count: int = 6) -> list[Slate]:
    return [maker.evaluation(maker.sequences.test, case) for case in range(count)]


def training_groups(maker: SlateMaker, count: int = 6) -> list[list[Slate]]:
    return [maker.training(window, epoch=0) for window in range(count)]


def branches_of(batch: PromptTreeBatch) -> list[Branch]:
    """What each branch's labels spell, and the path to its last label's place, by the attention rule alone."""
    paths: dict[int, list[int]] = {}
    labels: dict[int, list[int]] = {}
    places = torch.arange(len(batch.token))
    for place, label, branch in zip(
        batch.label_place.tolist(), batch.label_token.tolist(), batch.label_branch.tolist(), strict=True
    ):
        seen = (places <= place) & (place < batch.end)
        path = batch.token[seen].tolist()
        assert batch.depth[seen].tolist() == list(range(len(path)))
        earlier = paths.get(branch, path)
        assert path[: len(earlier)] == earlier  # each label's path continues the one before
        assert len(path) == len(earlier) + (branch in paths)
        assert path[len(path) - len(labels.get(branch, [])) :] == labels.get(branch, [])
        paths[branch] = path
        labels.setdefault(branch, []).append(label)
    assert sorted(paths) == list(range(len(batch.branch_case)))
    return [(paths[branch], labels[branch]) for branch in sorted(paths)]


def encoded_apart(collator: PromptTreeCollator, slates: Sequence[Slate]) -> list[Branch]:
    made: list[Branch] = []
    for slate in slates:
        [one] = collator.slates.encoder.encode([collator.text.instruction(slate)])
        made += [([*one.prompt, *answer[:-1]], answer) for answer in one.answers]
    return made


# --- prompt trees ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("kind", ["training", "evaluation"])
def test_each_branch_spells_its_prompt_and_its_labels_the_answer(
    sequences: Sequences, maker: SlateMaker, encoder: ChatEncoder, name: str, kind: str
) -> None:
    groups = training_groups(maker) if kind == "training" else [[slate] for slate in evaluation_slates(maker)]
    collator = tree_collator(sequences, encoder, name)
    batch = collator(groups)
    slates = [slate for group in groups for slate in group]

    expected = encoded_apart(collator, slates)
    assert branches_of(batch) == expected
    assert batch.tokens_unshared == sum(len(path) for path, _ in expected)
    assert batch.tokens < batch.tokens_unshared
    assert batch.truncated == 0


def test_every_token_of_the_row_serves_a_branch(sequences: Sequences, maker: SlateMaker, encoder: ChatEncoder) -> None:
    batch = tree_collator(sequences, encoder)([[slate] for slate in evaluation_slates(maker, 5)])
    used = torch.zeros(len(batch.token), dtype=torch.bool)
    for place in batch.label_place.tolist():
        used |= (torch.arange(len(used)) <= place) & (place < batch.end)

    assert used.all()
    assert batch.tokens == len(used)


def test_stretches_hold_whole_trees_and_keep_to_their_budget_unless_one_is_larger(
    sequences: Sequences, maker: SlateMaker, encoder: ChatEncoder
) -> None:
    groups = [[slate] for slate in evaluation_slates(maker, 8)]
    trunk = tree_collator(sequences, encoder)(groups).trunk
    behind = [tree_collator(sequences, encoder)([group]).tokens - trunk for group in groups]

    for row_tokens in (1, max(behind), 3 * max(behind)):
        batch = tree_collator(sequences, encoder, row_tokens=row_tokens)(groups)
        assert (batch.stretches[0], batch.stretches[-1]) == (trunk, trunk + sum(behind))
        for begin, stop in pairwise(batch.stretches):
            assert 0 < stop - begin <= max(row_tokens, *behind)
            assert int(batch.end[begin:stop].max()) == stop
    assert len(tree_collator(sequences, encoder, row_tokens=1)(groups).stretches) == 9
    assert len(tree_collator(sequences, encoder, row_tokens=100 * max(behind))(groups).stretches) == 2


def test_what_all_prompts_begin_with_stands_once_before_all_trees(
    sequences: Sequences, maker: SlateMaker, encoder: ChatEncoder
) -> None:
    collator = tree_collator(sequences, encoder)
    groups = [[slate] for slate in evaluation_slates(maker, 5)]
    batch = collator(groups)
    prompts = [path for path, _ in encoded_apart(collator, [slate for group in groups for slate in group])]

    assert batch.trunk == shared_by_all(prompts) > 20  # the system turn, and how the user's turn begins
    assert batch.token[: batch.trunk].tolist() == prompts[0][: batch.trunk]
    assert (batch.end[: batch.trunk] == batch.tokens).all()
    assert batch.tokens == sum(collator([group]).tokens for group in groups) - 4 * batch.trunk
    assert collator(groups[:1]).trunk == 0  # a tree alone is its own trunk


@given(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=5), min_size=1, max_size=6))
def test_a_common_beginning_leaves_each_prompt_a_token(prompts: list[list[int]]) -> None:
    shared = common_beginning(prompts)
    assert shared == min(shared_by_all(prompts), min(map(len, prompts)) - 1)


@pytest.mark.parametrize("name", ["matching.en.1", "like.en.1"])
def test_neither_company_nor_row_length_changes_a_branch(
    sequences: Sequences, maker: SlateMaker, encoder: ChatEncoder, name: str
) -> None:
    slates = evaluation_slates(maker, 6)

    def by_case(order: list[int], size: int, row_tokens: int) -> dict[tuple[int, int], tuple[Branch, float]]:
        found = {}
        for begin in range(0, len(order), size):
            batch = tree_collator(sequences, encoder, name, row_tokens=row_tokens)(
                [[slates[n]] for n in order[begin : begin + size]]
            )
            for number, branch in enumerate(branches_of(batch)):
                key = int(batch.case[batch.branch_case[number]]), int(batch.branch_item[number])
                found[key] = branch, float(batch.relevance[number])
        return found

    alone = by_case([0, 1, 2, 3, 4, 5], 1, 400)
    assert len(alone) == (12 if name == "like.en.1" else 48)
    assert by_case([5, 3, 1, 0, 2, 4], 6, 64) == alone
    assert by_case([2, 4, 0, 1, 5, 3], 4, 100_000) == alone


def test_shared_fields_say_whose_branch_it_is_and_which_is_right(
    sequences: Sequences, maker: SlateMaker, encoder: ChatEncoder
) -> None:
    slates = evaluation_slates(maker, 5)
    batch = tree_collator(sequences, encoder)([slates[:2], slates[2:]])

    assert batch.answers == "candidates"
    assert batch.case.tolist() == [0, 1, 2, 3, 4]
    assert batch.branch_case.tolist() == [n for n in range(5) for _ in range(8)]
    assert batch.branch_item.tolist() == [item for slate in slates for item in slate.candidates.tolist()]
    right = batch.branch_item[batch.relevance == 1].tolist()
    assert right == [slate.target for slate in slates]
    assert batch.relevance.sum() == 5


def test_yes_and_no_are_told_by_the_rating(sequences: Sequences, maker: SlateMaker, encoder: ChatEncoder) -> None:
    slates = [slate for group in training_groups(maker, 4) for slate in group]
    batch = tree_collator(sequences, encoder, "like.en.1")([slates])

    assert batch.answers == "fixed"
    assert batch.branch_item.tolist() == [0, 1] * len(slates)
    liked = [slate.target_liked for slate in slates]
    assert len(set(liked)) == 2
    assert batch.relevance.view(-1, 2)[:, 0].tolist() == [float(yes) for yes in liked]
    assert (batch.relevance.view(-1, 2).sum(1) == 1).all()
    decoded = [encoder.tokenizer.decode(answer[:-1]) for _, answer in branches_of(batch)]
    assert decoded == ["Yes", "No"] * len(slates)


def test_a_window_shares_the_history_of_its_targets(
    sequences: Sequences, maker: SlateMaker, encoder: ChatEncoder
) -> None:
    group = max(training_groups(maker, 10), key=len)
    assert len(group) > 2
    collator = tree_collator(sequences, encoder)

    together, apart = collator([group]), [collator([[slate]]) for slate in group]

    assert together.tokens < 0.6 * sum(batch.tokens for batch in apart)
    assert branches_of(together) == [branch for batch in apart for branch in branches_of(batch)]


def slate_with(slate: Slate, **changed: Any) -> Slate:
    return replace(slate, **changed)


def test_two_items_of_one_title_keep_their_own_branches(
    sequences: Sequences, maker: SlateMaker, encoder: ChatEncoder
) -> None:
    one, other = TWINS
    assert sequences.titles[one] == sequences.titles[other]
    slate = slate_with(evaluation_slates(maker, 1)[0], candidates=np.array([one, 9, other]), target=other)

    batch = tree_collator(sequences, encoder)([[slate]])
    branches = branches_of(batch)

    assert batch.branch_item.tolist() == [one, 9, other]
    assert batch.relevance.tolist() == [0, 0, 1]
    assert branches[0] == branches[2] != branches[1]


def test_a_title_of_control_tokens_adds_none(sequences: Sequences, maker: SlateMaker, encoder: ChatEncoder) -> None:
    slate = evaluation_slates(maker, 1)[0]
    made = [
        tree_collator(sequences, encoder)([[slate_with(slate, history=np.array([9, item]), liked=slate.liked[:2])]])
        for item in (8, MARKED)
    ]

    special = torch.tensor(encoder.tokenizer.all_special_ids)
    counts = [int(torch.isin(torch.tensor(branches_of(batch)[0][0]), special).sum()) for batch in made]
    assert counts[0] == counts[1] == 5


def test_many_candidates_become_several_trees_that_spell_the_same(
    sequences: Sequences, maker: SlateMaker, encoder: ChatEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    slate = slate_with(evaluation_slates(maker, 1)[0], candidates=np.arange(40))
    groups = [[slate], training_groups(maker, 1)[0]]
    whole = tree_collator(sequences, encoder)(groups)
    monkeypatch.setattr(PromptTreeCollator, "answer_tokens", 30)

    split = tree_collator(sequences, encoder)(groups)

    assert branches_of(split) == branches_of(whole)
    assert split.branch_item.tolist() == whole.branch_item.tolist()
    assert split.tokens > 1.5 * whole.tokens  # each tree has its own copy of the prompt
    assert split.tokens_unshared == whole.tokens_unshared


@pytest.mark.parametrize("name", ["matching.en.1", "reranking.en.1", "like.en.1"])
def test_too_long_a_prompt_loses_its_oldest_history_and_is_counted(
    sequences: Sequences, maker: SlateMaker, encoder: ChatEncoder, name: str
) -> None:
    slates = sorted(evaluation_slates(maker, 24), key=lambda slate: len(slate.history))
    slate, company = slates[-1], slates[0]
    roomy = tree_collator(sequences, encoder, name)
    options = [encoded_apart(roomy, [slate.without_oldest(n)]) for n in range(len(slate.history) + 1)]
    whole, bare = (max(len(path) for path, _ in branches) for branches in (options[0], options[-1]))
    assert len(options) == 11
    for context in range(bare, whole + 1):
        collator = tree_collator(sequences, encoder, name, context=context)
        batch = collator([[slate], [company]])

        fitting = [option for option in options if max(len(path) for path, _ in option) <= context]
        assert branches_of(batch)[: len(options[0])] == fitting[0]  # as much as fits
        # Truncation is per prompt: the other one in the batch loses only what is too long in itself.
        alone = collator([[slate]])
        assert branches_of(alone) == fitting[0]
        assert alone.truncated == (context < whole)
        assert batch.truncated == alone.truncated + collator([[company]]).truncated


def test_truncation_counts_every_shortened_prompt(
    sequences: Sequences, maker: SlateMaker, encoder: ChatEncoder
) -> None:
    slates = evaluation_slates(maker, 24)
    roomy = tree_collator(sequences, encoder)
    lengths = [max(len(path) for path, _ in encoded_apart(roomy, [slate])) for slate in slates]
    context = sorted(lengths)[12]
    too_long = sum(length > context for length in lengths)
    assert 0 < too_long < 24
    collator = tree_collator(sequences, encoder, context=context)

    batches = [collator([[slate] for slate in slates[:10]]), collator([[slate] for slate in slates[10:]])]

    assert sum(batch.truncated for batch in batches) == too_long


def test_a_prompt_too_long_without_its_history_names_the_user(
    sequences: Sequences, maker: SlateMaker, encoder: ChatEncoder
) -> None:
    slate = evaluation_slates(maker, 1)[0]

    with pytest.raises(InputError, match=rf"user '{slate.user}': the prompt is \d+ tokens over the backbone's 20 even"):
        tree_collator(sequences, encoder, context=20)([[slate]])


def test_a_case_without_candidates_names_the_user(
    sequences: Sequences, maker: SlateMaker, encoder: ChatEncoder
) -> None:
    slate = slate_with(evaluation_slates(maker, 1)[0], candidates=np.array([], dtype=np.int64))

    with pytest.raises(InputError, match=rf"user '{slate.user}' has no candidates"):
        tree_collator(sequences, encoder)([[slate]])


@pytest.mark.parametrize("title", ["\u200b", " \n", "\u202e\u202d"])
def test_a_candidate_that_tokenises_to_nothing_names_user_and_item(
    sequences: Sequences, maker: SlateMaker, encoder: ChatEncoder, bert: Any, title: str
) -> None:
    slate = evaluation_slates(maker, 1)[0]
    item = int(slate.candidates[3])
    text = text_of(sequences, "matching.en.1")
    text = replace(text, titles=[title if n == item else other for n, other in enumerate(text.titles)])
    named = re.escape(f"user {slate.user!r}: the candidate {title!r} (item {sequences.item_ids[item]}) has no tokens")

    with pytest.raises(InputError, match=named):
        PromptTreeCollator(SlateEncoder(text, encoder, 512), 400)([[slate]])
    with pytest.raises(InputError, match=named):
        TaggedTextCollator(text, bert, 512, row_tokens=200)([[slate]])


def test_a_title_without_tokens_in_the_history_shows_nothing(
    sequences: Sequences, maker: SlateMaker, encoder: ChatEncoder
) -> None:
    slate = evaluation_slates(maker, 1)[0]
    shown = int(slate.history[0])
    assert shown not in slate.candidates
    text = text_of(sequences, "matching.en.1")
    text = replace(text, titles=["\u200b" if n == shown else other for n, other in enumerate(text.titles)])
    collator = PromptTreeCollator(SlateEncoder(text, encoder, 512), 400)

    assert branches_of(collator([[slate]])) == encoded_apart(collator, [slate])


def test_a_candidate_named_twice_keeps_two_branches(
    sequences: Sequences, maker: SlateMaker, encoder: ChatEncoder
) -> None:
    slate = slate_with(evaluation_slates(maker, 1)[0], candidates=np.array([9, 3, 9, 3, 3]), target=3)

    batch = tree_collator(sequences, encoder)([[slate]])

    assert batch.branch_item.tolist() == [9, 3, 9, 3, 3]
    assert batch.relevance.tolist() == [0, 1, 0, 1, 1]
    read = branches_of(batch)
    assert read[0] == read[2] != read[1] == read[3] == read[4]
    assert batch.tokens < sum(len(path) for path, _ in read)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(context=st.integers(60, 260), picked=st.lists(st.integers(0, 23), min_size=1, max_size=6))
@pytest.mark.parametrize("name", ["matching.en.1", "matching.zh.1", "like.en.2"])
def test_the_history_shown_is_the_longest_that_fits(
    sequences: Sequences,
    maker: SlateMaker,
    encoder: ChatEncoder,
    name: str,
    context: int,
    picked: list[int],
) -> None:
    """Against trying every number of events, with prompts from pieces as with whole ones."""
    slates = [maker.evaluation(maker.sequences.test, case) for case in picked]
    made = SlateEncoder(text_of(sequences, name), encoder, context)

    def fits(slate: Slate, dropped: int) -> bool:
        [one] = encoder.encode([made.text.instruction(slate.without_oldest(dropped))])
        return len(one.prompt) + max(map(len, one.answers)) - 1 <= context

    fewest = [next((n for n in range(len(s.history) + 1) if fits(s, n)), None) for s in slates]
    if None in fewest:
        with pytest.raises(InputError, match="even without its history"):
            made.encode(slates)
        return
    found = made.encode(slates)
    assert [one.dropped for one in found] == fewest
    for one, slate in zip(found, slates, strict=True):
        [expected] = encoder.encode([made.text.instruction(slate.without_oldest(one.dropped))])
        assert (one.prompt, one.answers) == (expected.prompt, expected.answers)
    for one, slate in zip(found, slates, strict=True):
        [alone] = made.prompts([slate], max(map(len, one.answers)))
        assert (alone.prompt, alone.dropped) == (one.prompt, one.dropped)


def test_batches_move_as_one(sequences: Sequences, maker: SlateMaker, encoder: ChatEncoder) -> None:
    batch = tree_collator(sequences, encoder)([evaluation_slates(maker, 2)])

    moved = batch.to("meta")

    for field in fields(batch):
        before, after = getattr(batch, field.name), getattr(moved, field.name)
        if isinstance(before, torch.Tensor):
            assert (after.device.type, after.shape, after.dtype) == ("meta", before.shape, before.dtype)
        else:
            assert after == before


# --- tagged texts ---------------------------------------------------------------------------------------------------


@pytest.fixture
def bert(tiny_encoder: Path) -> Any:
    return load_tokenizer(str(tiny_encoder))


def tagged(sequences: Sequences, bert: Any, context: int = 512, row_tokens: int = 200) -> TaggedTextCollator:
    return TaggedTextCollator(text_of(sequences, "matching.en.1"), bert, context, row_tokens)


def texts_of(batch: TaggedTextBatch) -> dict[int, list[int]]:
    """Ids of each case's text, by the segments alone; a text belongs to the case of its candidates."""
    found: dict[int, list[int]] = {}
    for row in range(len(batch.token)):
        for segment in batch.segment[row].unique().tolist():
            inside = batch.segment[row] == segment
            columns = inside.nonzero().flatten().tolist()
            assert columns == list(range(columns[0], columns[0] + len(columns)))  # in one piece
            assert batch.position[row, inside].tolist() == list(range(len(columns)))
            branches = batch.branch[row, inside]
            if not batch.attention[row, inside].all():  # padding: alone, and nobody's
                assert (len(columns), branches.tolist()) == (1, [-1])
                continue
            [case] = batch.branch_case[branches[branches >= 0]].unique().tolist()
            assert case not in found
            found[case] = batch.token[row, inside].tolist()
    return found


def title_ids(bert: Any, title: str) -> list[int]:
    ids: list[int] = bert(clean_title(title), add_special_tokens=False, split_special_tokens=True).input_ids
    return ids


def expected_text(bert: Any, sequences: Sequences, slate: Slate) -> list[int]:
    history = [[*title_ids(bert, sequences.titles[item]), bert.sep_token_id] for item in slate.history]
    candidates = [[*title_ids(bert, sequences.titles[item]), bert.sep_token_id] for item in slate.candidates]
    return [bert.cls_token_id, *sum(history, []), bert.sep_token_id, *sum(candidates, [])]


def test_a_tagged_text_is_history_then_candidates(sequences: Sequences, maker: SlateMaker, bert: Any) -> None:
    slates = evaluation_slates(maker, 6)
    batch = tagged(sequences, bert)([slates[:1], slates[1:]])
    assert isinstance(batch, TaggedTextBatch)

    expected = [expected_text(bert, sequences, slate) for slate in slates]
    assert texts_of(batch) == dict(enumerate(expected))
    assert len(set(map(len, expected))) > 1
    assert batch.tokens == int(batch.attention.sum()) == sum(map(len, expected))
    assert (batch.token[~batch.attention] == bert.pad_token_id).all()
    for field in (batch.branch, batch.attention, batch.segment, batch.position):
        assert field.shape == batch.token.shape


def test_texts_share_rows_within_the_budget(sequences: Sequences, maker: SlateMaker, bert: Any) -> None:
    groups = [[slate] for slate in evaluation_slates(maker, 12)]
    expected = [expected_text(bert, sequences, slate) for [slate] in groups]
    longest = max(map(len, expected))
    for row_tokens, rows in ((1, 12), (2 * longest, 6), (4 * longest, 3)):
        batch = tagged(sequences, bert, row_tokens=row_tokens)(groups)
        assert texts_of(batch) == dict(enumerate(expected))
        assert batch.token.shape[1] <= max(row_tokens, longest)
        assert len(batch.token) <= rows


def test_tags_cover_exactly_the_tokens_of_each_candidate(sequences: Sequences, maker: SlateMaker, bert: Any) -> None:
    slates = evaluation_slates(maker, 4)
    slates[1] = slate_with(slates[1], candidates=np.array([*TWINS, MARKED, 9]), target=9)
    batch = tagged(sequences, bert)([slates])

    assert batch.branch_case.tolist() == [n for n, slate in enumerate(slates) for _ in slate.candidates]
    for number, item in enumerate(batch.branch_item.tolist()):
        places = (batch.branch == number).nonzero()
        [row] = set(places[:, 0].tolist())
        columns = places[:, 1].tolist()
        assert columns == list(range(columns[0], columns[0] + len(columns)))
        assert batch.token[row, columns].tolist() == title_ids(bert, sequences.titles[item])
        assert batch.token[row, columns[-1] + 1] == bert.sep_token_id
    untagged = batch.token[(batch.branch == -1) & batch.attention]
    assert (untagged == bert.cls_token_id).sum() == 4
    assert len(set(batch.branch.flatten().tolist())) == len(batch.branch_item) + 1


def test_a_title_of_separators_adds_no_separator(sequences: Sequences, maker: SlateMaker, bert: Any) -> None:
    slate = slate_with(evaluation_slates(maker, 1)[0], candidates=np.array([MARKED, 9]), target=9)
    batch = tagged(sequences, bert)([[slate]])

    assert "[SEP]" in sequences.titles[MARKED]
    assert (batch.token == bert.sep_token_id).sum() == len(slate.history) + 1 + 2


def test_a_tagged_text_too_long_loses_its_oldest_titles(sequences: Sequences, maker: SlateMaker, bert: Any) -> None:
    slate = max(evaluation_slates(maker, 24), key=lambda slate: len(slate.history))
    whole = expected_text(bert, sequences, slate)
    options = [expected_text(bert, sequences, slate.without_oldest(n)) for n in range(len(slate.history) + 1)]
    for context in range(len(options[-1]), len(whole) + 1):
        collator = tagged(sequences, bert, context)
        batch = collator([[slate]])
        kept = next(option for option in options if len(option) <= context)  # as much as fits
        assert batch.token[0].tolist() == kept
        assert batch.truncated == (kept != whole)


def test_candidates_longer_than_the_context_name_the_user(sequences: Sequences, maker: SlateMaker, bert: Any) -> None:
    slate = evaluation_slates(maker, 1)[0]
    shortest = len(expected_text(bert, sequences, slate.without_oldest(len(slate.history))))

    tagged(sequences, bert, shortest)([[slate]])
    with pytest.raises(InputError, match=rf"user '{slate.user}': the candidates alone exceed the backbone's"):
        tagged(sequences, bert, shortest - 1)([[slate]])


def test_a_candidate_without_tokens_is_refused(sequences: Sequences, maker: SlateMaker, bert: Any) -> None:
    slate = evaluation_slates(maker, 1)[0]
    titles = [*sequences.titles]
    titles[int(slate.candidates[0])] = "\u200b"
    text = replace(text_of(sequences, "matching.en.1"), titles=titles)

    with pytest.raises(InputError, match=rf"user '{slate.user}': the candidate .* has no tokens"):
        TaggedTextCollator(text, bert, 512, 200)([[slate]])


def test_tagged_texts_need_separators(sequences: Sequences, encoder: ChatEncoder) -> None:
    with pytest.raises(InputError, match=r"has no \[CLS\] and \[SEP\]"):
        tagged(sequences, encoder.tokenizer)


# --- plain item codes -----------------------------------------------------------------------------------------------


def test_histories_are_padded_on_the_left(sequences: Sequences, maker: SlateMaker) -> None:
    slates = evaluation_slates(maker, 8)
    batch = InteractionCollator(text_of(sequences, "matching.en.1"))([slates[:3], slates[3:]])
    assert isinstance(batch, InteractionBatch)

    width = max(len(slate.history) for slate in slates)
    assert len({len(slate.history) for slate in slates}) > 1
    assert batch.history.shape == (8, width)
    for row, slate in zip(batch.history.tolist(), slates, strict=True):
        assert row == [-1] * (width - len(slate.history)) + slate.history.tolist()
    assert batch.branch_item.view(8, 8).tolist() == [slate.candidates.tolist() for slate in slates]
    assert batch.relevance.view(8, 8).sum(1).tolist() == [1.0] * 8


def test_an_empty_history_is_all_padding(sequences: Sequences, maker: SlateMaker) -> None:
    slate = evaluation_slates(maker, 1)[0]
    empty = slate.without_oldest(len(slate.history))

    batch = InteractionCollator(text_of(sequences, "matching.en.1"))([[empty]])

    assert isinstance(batch, InteractionBatch)
    assert batch.history.tolist() == [[-1]]
