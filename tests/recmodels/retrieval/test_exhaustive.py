"""Whole catalogues score as separate padded sequences do, however they are cut, for every tuning variant."""

from __future__ import annotations

import resource
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from datamodules.batching.catalogue import build_trie
from datamodules.batching.loaders import LoaderOptions
from datamodules.contract.batch import CatalogueTrie
from datamodules.datasets.movielens import MovieLens100K
from datamodules.protocol.rules import Protocol
from recmodels.backbones.causal import CausalBackbone
from recmodels.engine.tree_attention import ATTENTION
from recmodels.methods.zero_shot import ZeroShot
from recmodels.retrieval.exhaustive import catalogue_scores
from tests.recmodels.oracle import KINDS
from tests.recmodels.retrieval.tries import (
    END,
    EXAMPLE_PROMPTS,
    EXAMPLE_TITLES,
    FAMILIES,
    PROMPTS,
    TITLES,
    ended,
    left_padded,
    tiny,
)


@torch.no_grad()
def padded_scores(backbone: CausalBackbone, prompts: Sequence[list[int]], answers: Sequence[list[int]]) -> Tensor:
    """The oracle `[U, I]`: every prompt and answer as a row of its own, plain causal attention, all logits."""
    rows = [prompt + answer for prompt in prompts for answer in answers]
    width = max(map(len, rows))
    token = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.ones(width, width, dtype=torch.bool).tril().expand(len(rows), 1, -1, -1)
    position = torch.arange(width).expand(len(rows), -1)
    hidden = backbone.body(
        input_ids=token, attention_mask=mask, position_ids=position, use_cache=False
    ).last_hidden_state
    logp = backbone.head(hidden).float().log_softmax(-1)[:, :-1].gather(2, token[:, 1:, None])[..., 0]
    labels = [(len(p) - 1, len(p) + len(a) - 1) for p in prompts for a in answers]
    scores = [logp[row, low:high].sum() for row, (low, high) in enumerate(labels)]
    return torch.stack(scores).view(len(prompts), len(answers))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prompts=PROMPTS, titles=TITLES, sizes=st.sampled_from([(1, 1), (3, 20), (64, 512)]))
def test_scores_equal_separate_padded_sequences(
    backbones: dict[str, CausalBackbone],
    kind: str,
    prompts: list[list[int]],
    titles: list[list[int]],
    sizes: tuple[int, int],
) -> None:
    trie = build_trie(ended(titles))
    got = catalogue_scores(backbones[kind], *left_padded(prompts), trie, row_tokens=sizes[0], chunk_tokens=sizes[1])
    torch.testing.assert_close(got, padded_scores(backbones[kind], prompts, ended(titles)), atol=1e-4, rtol=0)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prompts=PROMPTS, titles=TITLES, rows=st.integers(1, 9), tokens=st.integers(1, 40), data=st.data())
def test_neither_cut_nor_company_nor_order_changes_scores(
    backbones: dict[str, CausalBackbone],
    prompts: list[list[int]],
    titles: list[list[int]],
    rows: int,
    tokens: int,
    data: st.DataObject,
) -> None:
    backbone = backbones["prefix"]
    expected = catalogue_scores(backbone, *left_padded(prompts), build_trie(ended(titles)))
    users = data.draw(st.permutations(range(len(prompts))))
    items = data.draw(st.permutations(range(len(titles))))
    trie = build_trie(ended([titles[item] for item in items]))
    sizes = {"row_tokens": rows, "chunk_tokens": tokens}
    together = catalogue_scores(backbone, *left_padded([prompts[user] for user in users]), trie, **sizes)
    alone = torch.cat([catalogue_scores(backbone, *left_padded([prompts[user]]), trie, **sizes) for user in users])
    for got in (together, alone):
        torch.testing.assert_close(got, expected[users][:, items], atol=1e-4, rtol=0)


@pytest.mark.parametrize("row_tokens", [1, 5, 7])
def test_titles_that_all_share_their_first_token(backbones: dict[str, CausalBackbone], row_tokens: int) -> None:
    """The tree's first node is an ancestor of all, as padding in a row must not be, which bears its number."""
    answers = ended([[9, a, b] for a in range(3, 7) for b in range(3, 3 + a)] + [[9], [9, 30, 31, 32]])
    prompts = [[3, 4, 5], [6]]
    got = catalogue_scores(backbones["plain"], *left_padded(prompts), build_trie(answers), row_tokens=row_tokens)
    torch.testing.assert_close(got, padded_scores(backbones["plain"], prompts, answers), atol=1e-4, rtol=0)


def test_answers_without_an_end_token_may_begin_others(backbones: dict[str, CausalBackbone]) -> None:
    answers = [[5], [5, 6], [7], [5, 6], [5, 6, 7]]
    got = catalogue_scores(backbones["plain"], *left_padded([[3, 4]]), build_trie(answers), row_tokens=2)
    torch.testing.assert_close(got, padded_scores(backbones["plain"], [[3, 4]], answers), atol=1e-4, rtol=0)
    single = build_trie([[5], [7]])  # nothing follows the prompt
    got = catalogue_scores(backbones["plain"], *left_padded([[3, 4]]), single)
    torch.testing.assert_close(got, padded_scores(backbones["plain"], [[3, 4]], [[5], [7]]), atol=1e-4, rtol=0)


@torch.no_grad()
def own_scores(backbone: CausalBackbone, prompts: Sequence[list[int]], answers: Sequence[list[int]]) -> Tensor:
    """The oracle for windows and caps `[U, I]`: transformers' own forward, one sequence at a time."""
    backbone.model.set_attn_implementation("eager")
    scores = []
    for prompt, answer in ((p, a) for p in prompts for a in answers):
        logits = backbone.model(torch.tensor([prompt + answer]), use_cache=False).logits[0].float().log_softmax(-1)
        scores.append(logits[len(prompt) - 1 : -1].gather(1, torch.tensor(answer)[:, None]).sum())
    backbone.model.set_attn_implementation(ATTENTION)
    return torch.stack(scores).view(len(prompts), len(answers))


@pytest.mark.parametrize("family", FAMILIES)
def test_families(family: str) -> None:
    backbone, answers = tiny(family), ended(EXAMPLE_TITLES)
    got = catalogue_scores(backbone, *left_padded(EXAMPLE_PROMPTS), build_trie(answers), row_tokens=6, chunk_tokens=20)
    torch.testing.assert_close(got, own_scores(backbone, EXAMPLE_PROMPTS, answers), atol=1e-4, rtol=0)


@pytest.mark.parametrize("normalised", [False, True])
def test_a_model_scores_a_catalogue_batch_as_the_trees_of_its_cases(
    mini_data: Path, tiny_causal: Path, normalised: bool
) -> None:
    model = ZeroShot(backbone=str(tiny_causal), length_normalised=normalised)
    model.configure_model()
    model.eval()
    data = MovieLens100K(
        backbone=str(tiny_causal), protocol=Protocol(candidates="full"), loader=LoaderOptions(eval_batch_size=3)
    )
    batch = next(iter(data.test_dataloader()))
    trees = data.collator([[data.slates.evaluation(data.sequences.test, int(case))] for case in batch.case])
    with torch.no_grad():
        torch.testing.assert_close(model.score(batch), model.score(trees), atol=1e-4, rtol=0)
        scored = model.score_cases(batch)
    assert scored.candidates.tolist() == [int((batch.branch_case == row).sum()) for row in range(3)]
    assert scored.total_relevant.tolist() == [1, 1, 1]
    assert scored.tokens == batch.tokens


def test_only_what_predicts_goes_through_the_network_and_only_once(backbones: dict[str, CausalBackbone]) -> None:
    trie = build_trie(ended(EXAMPLE_TITLES))
    fed: list[int] = []
    body = backbones["plain"].body
    hook = body.register_forward_pre_hook(
        lambda _, __, kwargs: fed.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    catalogue_scores(backbones["plain"], *left_padded([[3, 4, 5]]), trie, row_tokens=100)
    hook.remove()
    prefixes = {tuple(title[: n + 1]) for title in EXAMPLE_TITLES for n in range(len(title))}
    assert fed == [3, len(prefixes)]


@pytest.mark.parametrize("sizes", [{"row_tokens": 0}, {"chunk_tokens": 0}])
def test_impossible_sizes_are_refused(backbones: dict[str, CausalBackbone], sizes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        catalogue_scores(backbones["plain"], *left_padded([[3]]), build_trie([[4]]), **sizes)


def large_trie(items: int) -> tuple[CatalogueTrie, list[list[int]]]:
    rng = np.random.default_rng(0)
    words = rng.zipf(1.3, size=(items, 8)) % 50 + 3
    answers = [[*row[:size].tolist(), END] for row, size in zip(words, rng.integers(2, 8, items), strict=True)]
    return build_trie(answers), answers


@pytest.mark.slow
def test_a_hundred_thousand_titles_score_in_bounded_memory() -> None:
    backbone, prompts = tiny("Llama"), EXAMPLE_PROMPTS[:2]
    small, _ = large_trie(2000)
    trie, answers = large_trie(100_000)
    catalogue_scores(backbone, *left_padded(prompts), small, chunk_tokens=4096)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    scores = catalogue_scores(backbone, *left_padded(prompts), trie, chunk_tokens=4096)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown * 1024 < 16 * 4 * scores.numel() + 64 * 2**20  # a few columns by node and case, whatever the model
    some = np.random.default_rng(1).integers(0, 100_000, 50).tolist()
    expected = padded_scores(backbone, prompts, [answers[item] for item in some])
    torch.testing.assert_close(scores[:, some], expected, atol=1e-4, rtol=0)
