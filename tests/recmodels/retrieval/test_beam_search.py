"""Beam search returns real items with the scores that exhaustive ranking gives them; wide, it is exhaustive ranking."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from datamodules.batching.catalogue import build_trie
from datamodules.batching.loaders import LoaderOptions
from datamodules.contract.errors import InputError
from datamodules.datasets.movielens import MovieLens100K
from datamodules.protocol.rules import Protocol
from recmodels.backbones.causal import CausalBackbone
from recmodels.base import measure_cases
from recmodels.methods.peft import PeftTuning
from recmodels.methods.zero_shot import ZeroShot
from recmodels.retrieval.beam_search import Retrieved, beam_search
from recmodels.retrieval.exhaustive import catalogue_scores
from tests.recmodels.oracle import KINDS
from tests.recmodels.retrieval.tries import (
    EXAMPLE_PROMPTS,
    EXAMPLE_TITLES,
    FAMILIES,
    PROMPTS,
    TITLES,
    ended,
    left_padded,
    tiny,
)


def check(found: Retrieved, scores: Tensor, candidate: Tensor, titles: list[list[int]], beams: int) -> None:
    """What holds for every width: real candidates, each once, best first, with exhaustive ranking's scores."""
    torch.testing.assert_close(found.score, scores[found.user, found.item], atol=1e-4, rtol=0)
    assert bool(candidate[found.user, found.item].all())
    assert found.user.tolist() == sorted(found.user.tolist())
    for user in range(len(candidate)):
        mine = found.user == user
        items = found.item[mine].tolist()
        assert len(set(items)) == len(items)
        assert bool((found.score[mine].diff() <= 0).all())
        order = [tuple(titles[item]) for item in items]
        assert order == sorted(order, key=order.index)  # items of one title stand together
        offered = {tuple(titles[item]) for item in candidate[user].nonzero().flatten().tolist()}
        assert len(set(order)) == min(beams, len(offered))
        twins = [i for i in candidate[user].nonzero().flatten().tolist() if tuple(titles[i]) in set(order)]
        assert sorted(items) == twins  # of a title found, every candidate that bears it


@st.composite
def searches(draw: st.DrawFn) -> dict[str, Any]:
    prompts, titles = draw(PROMPTS), draw(TITLES)
    candidate = torch.tensor(
        draw(
            st.lists(
                st.lists(st.booleans(), min_size=len(titles), max_size=len(titles)).filter(any),
                min_size=len(prompts),
                max_size=len(prompts),
            )
        )
    )
    return {"prompts": prompts, "titles": titles, "candidate": candidate}


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=searches(), normalised=st.booleans())
def test_wide_beams_rank_exhaustively(
    backbones: dict[str, CausalBackbone], kind: str, case: dict[str, Any], normalised: bool
) -> None:
    backbone, prompts, candidate = backbones[kind], left_padded(case["prompts"]), case["candidate"]
    trie = build_trie(ended(case["titles"]))
    scores = catalogue_scores(backbone, *prompts, trie)
    scores = scores / (trie.depth[trie.last] + 1) if normalised else scores
    beams = len(trie.token)
    found = beam_search(backbone, *prompts, trie, beams, candidate=candidate, length_normalised=normalised)
    check(found, scores, candidate, case["titles"], beams)
    assert torch.equal(torch.bincount(found.user, minlength=len(candidate)), candidate.sum(1))
    best = scores.masked_fill(~candidate, -torch.inf).sort(1, descending=True).values
    torch.testing.assert_close(found.score, best[best > -torch.inf], atol=1e-4, rtol=0)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=searches(), beams=st.integers(1, 5), normalised=st.booleans())
def test_narrow_beams_return_valid_items_with_true_scores(
    backbones: dict[str, CausalBackbone], case: dict[str, Any], beams: int, normalised: bool
) -> None:
    backbone, prompts, candidate = backbones["prefix"], left_padded(case["prompts"]), case["candidate"]
    trie = build_trie(ended(case["titles"]))
    scores = catalogue_scores(backbone, *prompts, trie)
    scores = scores / (trie.depth[trie.last] + 1) if normalised else scores
    found = beam_search(backbone, *prompts, trie, beams, candidate=candidate, length_normalised=normalised)
    check(found, scores, candidate, case["titles"], beams)
    for user, prompt in enumerate(case["prompts"]):  # company changes nothing
        alone = beam_search(
            backbone,
            *left_padded([prompt]),
            trie,
            beams,
            candidate=candidate[user : user + 1],
            length_normalised=normalised,
        )
        torch.testing.assert_close(alone.score, found.score[found.user == user], atol=1e-4, rtol=0)


def choice_by_choice(
    scores_of: Any, answers: list[list[int]], beams: int, normalised: bool
) -> list[tuple[float, list[int]]]:
    """The oracle: textbook beam search over prefixes, where one that can go on in one way only does so at once.

    Beginnings compete by their sums; finished answers by the mean over their tokens, where that is asked for.
    """
    open_: list[list[int]] = [[]]
    finished: list[tuple[float, list[int]]] = []
    while open_:
        scored = sorted(((scores_of(p), p) for prefix in open_ for p in longer(prefix, answers)), reverse=True)
        finished += [(score / len(p) if normalised else score, p) for score, p in scored if p in answers]
        open_ = [p for _, p in scored if longer(p, answers)][:beams]
        for number, prefix in enumerate(open_):
            while len(ways := longer(open_[number], answers)) == 1 and ways[0] not in answers:
                open_[number] = ways[0]
            assert open_[number][: len(prefix)] == prefix
    return sorted(finished, reverse=True)[:beams]


def longer(prefix: list[int], answers: list[list[int]]) -> list[list[int]]:
    """Beginnings of answers with one token more."""
    size = len(prefix)
    return sorted(
        {tuple(a[: size + 1]): a[: size + 1] for a in answers if a[:size] == prefix and len(a) > size}.values()
    )


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("beams", [1, 2, 3])
def test_narrow_beams_find_what_a_textbook_search_finds(
    backbones: dict[str, CausalBackbone], beams: int, normalised: bool
) -> None:
    backbone, answers = backbones["lora"], ended(EXAMPLE_TITLES)
    prefixes = sorted({tuple(a[: n + 1]) for a in answers for n in range(len(a))})
    for prompt in EXAMPLE_PROMPTS:
        value = catalogue_scores(backbone, *left_padded([prompt]), build_trie([list(p) for p in prefixes]))[0]
        known = dict(zip(prefixes, value.tolist(), strict=True))
        expected = choice_by_choice(lambda p: known[tuple(p)], answers, beams, normalised)  # noqa: B023  # used now
        found = beam_search(backbone, *left_padded([prompt]), build_trie(answers), beams, length_normalised=normalised)
        best = {
            tuple(answers[item]): score for item, score in zip(found.item.tolist(), found.score.tolist(), strict=True)
        }
        assert list(best.values()) == pytest.approx([score for score, _ in expected], abs=1e-4)
        titles = list(dict.fromkeys(tuple(answers[item]) for item in found.item.tolist()))
        assert titles == [tuple(answer) for _, answer in expected]


@pytest.mark.parametrize("family", FAMILIES)
def test_families(family: str) -> None:
    backbone, trie = tiny(family), build_trie(ended(EXAMPLE_TITLES))
    prompts = left_padded(EXAMPLE_PROMPTS)
    found = beam_search(backbone, *prompts, trie, 20)
    everything = torch.ones(len(EXAMPLE_PROMPTS), len(EXAMPLE_TITLES), dtype=torch.bool)
    check(found, catalogue_scores(backbone, *prompts, trie), everything, EXAMPLE_TITLES, 20)


def test_the_search_ends_as_soon_as_nothing_can_overtake(backbones: dict[str, CausalBackbone]) -> None:
    backbone, prompts = backbones["plain"], left_padded([[3, 9, 4, 11, 5]])
    trie = build_trie(ended([[5], [6] * 30]))
    found, passes = beam_search(backbone, *prompts, trie, 1), []
    hook = backbone.body.register_forward_pre_hook(lambda *_: passes.append(1))
    beam_search(backbone, *prompts, trie, 1)
    hook.remove()
    scores = catalogue_scores(backbone, *prompts, trie)[0]
    assert found.item.tolist() == [int(scores.argmax())]
    assert len(passes) < 30
    assert found.tokens < 5 + 30


@pytest.mark.parametrize(
    ("prompts", "tokens"),
    [
        ([[3, 9, 4], [3, 9, 4, 11, 5], [3, 9, 8]], 2 + 1 + 3 + 1),
        ([[3, 9], [3, 9], [3, 9]], 1 + 3),  # the last token of a prompt is its own
        ([[4], [3, 9]], 3),
        ([[3, 9, 4]], 3),
    ],
)
def test_what_all_prompts_begin_with_is_encoded_once_and_nothing_is_padded(
    backbones: dict[str, CausalBackbone], prompts: list[list[int]], tokens: int
) -> None:
    backbone, sizes = backbones["plain"], []
    hook = backbone.body.register_forward_pre_hook(
        lambda _, __, inputs: sizes.append(inputs["input_ids"].shape), with_kwargs=True
    )
    beam_search(backbone, *left_padded(prompts), build_trie(ended([[5]])), 1)
    hook.remove()
    assert sizes[0] == (1, tokens)


def test_virtual_tokens_stand_before_every_prompt(tiny_causal: Path) -> None:
    model = PeftTuning(peft.PromptTuningConfig(num_virtual_tokens=3), backbone=str(tiny_causal))
    torch.manual_seed(1)
    model.configure_model()
    backbone, answers = model.eval().backbone, ended(EXAMPLE_TITLES)
    prompts = [[3, 9, 4], [3, 9, 4, 11, 5], [3, 9, 8], [7]]
    expected = torch.zeros(len(prompts), len(answers))
    for user, prompt in enumerate(prompts):
        for item, answer in enumerate(answers):
            token = torch.tensor([*prompt, *answer])
            size = len(token)
            with torch.no_grad():
                hidden = backbone.hidden_states(token, torch.full((size,), size), torch.arange(size), 0, (0, size))
                logp = backbone.head(hidden).log_softmax(-1)[:-1].gather(1, token[1:, None])
            expected[user, item] = logp[len(prompt) - 1 :].sum()
    trie = build_trie(answers)
    for some in (slice(0, 4), slice(0, 3), slice(3, 4)):  # with nothing in common, with two tokens, alone
        found = beam_search(backbone, *left_padded(prompts[some]), trie, 99)
        assert len(found.item) == len(prompts[some]) * len(answers)
        torch.testing.assert_close(found.score, expected[some][found.user, found.item], atol=1e-4, rtol=0)


def test_beams_below_one_are_refused(backbones: dict[str, CausalBackbone]) -> None:
    with pytest.raises(ValueError, match="beams is 0"):
        beam_search(backbones["plain"], *left_padded([[3]]), build_trie([[4]]), 0)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"beams": 0}, "model.beams is 0, must be at least 1"),
        ({"retrieval": "beam", "beams": 9}, "model.beams is 9, must be at least 10, the largest of model.cutoffs"),
    ],
)
def test_too_few_beams_are_refused_before_anything_loads(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ZeroShot(**kwargs)


def test_what_is_not_found_counts_as_missed(mini_data: Path, tiny_causal: Path) -> None:
    data = MovieLens100K(
        backbone=str(tiny_causal), protocol=Protocol(candidates="full"), loader=LoaderOptions(eval_batch_size=24)
    )
    batch = next(iter(data.test_dataloader()))
    values = {}
    for retrieval in ("exhaustive", "beam"):
        model = ZeroShot(backbone=str(tiny_causal), retrieval=retrieval, beams=3, cutoffs=(1, 3))  # type: ignore[arg-type]
        model.configure_model()
        model.eval()
        scored = model.score_cases(batch)
        assert scored.candidates.tolist() == torch.bincount(batch.branch_case).tolist()
        measure_cases(scored, model.test_ranking, model.test_binary, model.test_rating)
        values[retrieval] = {name: float(value) for name, value in model.test_ranking.compute().items()}
        assert torch.equal(model.score(batch), scored.score)
    ranks = exhaustive_ranks(model, batch)
    assert values["beam"]["users"] == values["exhaustive"]["users"] == 24
    assert values["beam"]["skipped_users"] == 0
    for k in (1, 3):  # a list as long as the cut-off says something, as it was found among more
        assert values["exhaustive"][f"hr@{k}"] == pytest.approx(float((ranks < k).float().mean()))
        assert values["beam"][f"hr@{k}"] <= values["exhaustive"][f"hr@{k}"]
    found = {(int(u), int(i)) for u, i in zip(scored.branch_case, scored.branch_item, strict=True)}
    right = batch.relevance > 0
    missed = [
        pair
        for pair in zip(batch.branch_case[right].tolist(), batch.branch_item[right].tolist(), strict=True)
        if pair not in found
    ]
    assert missed  # else this test says nothing
    assert values["beam"]["mrr"] <= (24 - len(missed)) / 24


def exhaustive_ranks(model: ZeroShot, batch: Any) -> Tensor:
    """Rank, from 0, of each case's right item; equal scores above it are ignored, there being no ties at these."""
    model.retrieval = "exhaustive"
    scores = model.score(batch)
    model.retrieval = "beam"
    right = scores[batch.relevance > 0]
    return torch.tensor(
        [int((scores[batch.branch_case == case] > right[case]).sum()) for case in range(len(batch.case))]
    )
