"""Rank and yes/no metrics against a plain definition averaged over all orders of ties, and other libraries."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, ndcg_score, roc_auc_score
from sklearn.metrics import log_loss as sklearn_log_loss
from torch import Tensor

from datamodules.contract.errors import InputError
from recmodels.metrics import binary as calibration
from recmodels.metrics import ranking as metrics
from recmodels.metrics.binary import BinaryMetrics
from recmodels.metrics.ranking import RankingMetrics

Metric = Callable[..., Tensor]
RANK_METRICS: dict[str, Metric] = {
    "hit_rate": metrics.hit_rate,
    "recall": metrics.recall,
    "precision": metrics.precision,
    "reciprocal_rank": metrics.reciprocal_rank,
    "average_precision": metrics.average_precision,
    "ndcg": metrics.ndcg,
}


def dcg(gains: Sequence[float]) -> float:
    return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, start=1))


def defined(ordered: Sequence[float], k: int, absent: int) -> dict[str, float]:
    """The definitions, word for word, of one list of gains in rank order without ties."""
    relevant = sum(gain > 0 for gain in ordered) + absent
    if not relevant:
        return dict.fromkeys(RANK_METRICS, math.nan)
    ranks = [rank for rank, gain in enumerate(ordered[:k], start=1) if gain > 0]
    ideal = sorted([gain for gain in ordered if gain > 0] + [1.0] * absent, reverse=True)
    return {
        "hit_rate": float(bool(ranks)),
        "recall": len(ranks) / relevant,
        "precision": len(ranks) / k,
        "reciprocal_rank": 1 / ranks[0] if ranks else 0.0,
        "average_precision": sum(hits / rank for hits, rank in enumerate(ranks, start=1)) / relevant,
        "ndcg": dcg(ordered[:k]) / dcg(ideal[:k]),
    }


def expected(scores: Sequence[float], gains: Sequence[float], k: int, absent: int) -> dict[str, float]:
    """The mean of the definitions over all orders of tied items."""
    runs = [
        [gain for gain, own in zip(gains, scores, strict=True) if own == score]
        for score in sorted(set(scores), reverse=True)
    ]
    orders = itertools.product(*(itertools.permutations(run) for run in runs))
    found = [defined([gain for run in order for gain in run], k, absent) for order in orders]
    return {name: sum(one[name] for one in found) / len(found) for name in RANK_METRICS}


class Users(NamedTuple):
    scores: Tensor
    relevance: Tensor
    mask: Tensor
    total: Tensor


def padded(users: Sequence[tuple[Sequence[float], Sequence[float], int]]) -> Users:
    """Ragged lists of (scores, gains, absent) as tables; padding holds what would do harm."""
    width = max((len(scores) for scores, _, _ in users), default=0)
    table = np.full((2, len(users), width), np.nan)
    for row, (scores, gains, _) in enumerate(users):
        table[0, row, : len(scores)] = scores
        table[1, row, : len(gains)] = gains
    scores, relevance = torch.tensor(table)
    absent = torch.tensor([absent for _, _, absent in users])
    mask = ~scores.isnan()
    return Users(scores, relevance, mask, ((relevance > 0) & mask).sum(1) + absent)


ITEMS = st.lists(st.tuples(st.integers(-1, 2), st.sampled_from([0.0, 0.0, 0.5, 1.0, 3.0])), max_size=6)
USERS = st.lists(st.tuples(ITEMS, st.integers(0, 3)), min_size=1, max_size=4)


@given(USERS, st.integers(1, 8))
@settings(max_examples=120, deadline=None)
def test_closed_forms_equal_the_mean_over_all_orders_of_ties(
    drawn: list[tuple[list[tuple[int, float]], int]], k: int
) -> None:
    lists = [([float(s) for s, _ in items], [g for _, g in items], absent) for items, absent in drawn]
    users = padded(lists)
    oracle = [expected(*one[:2], k, one[2]) for one in lists]
    for name, metric in RANK_METRICS.items():
        got = metric(users.scores, users.relevance, k, users.mask, users.total)
        assert got.dtype == torch.float64
        np.testing.assert_allclose(got, [one[name] for one in oracle], rtol=0, atol=1e-12, err_msg=name)
    no_cut = metrics.reciprocal_rank(users.scores, users.relevance, None, users.mask, users.total)
    deep = metrics.reciprocal_rank(users.scores, users.relevance, 99, users.mask, users.total)
    torch.testing.assert_close(no_cut, deep, rtol=0, atol=0, equal_nan=True)


@pytest.fixture(scope="module")
def tie_free() -> list[tuple[list[float], list[float], int]]:
    """10,000 users: 1 to 12 candidates of distinct scores, graded gains, absent relevant items."""
    rng = np.random.default_rng(0)
    users = []
    for _ in range(10_000):
        size = int(rng.integers(1, 13))
        scores = (rng.permutation(40)[:size] - 20.0).tolist()
        gains = (rng.integers(1, 4, size=size) * (rng.random(size) < rng.random())).astype(float).tolist()
        users.append((scores, gains, int(rng.integers(0, 4)) * int(rng.random() < 0.3)))
    return users


def test_ten_thousand_users_without_ties_equal_the_definition(
    tie_free: list[tuple[list[float], list[float], int]],
) -> None:
    for part, k in enumerate((1, 5, 10)):
        mine = tie_free[part::3]
        users = padded(mine)
        ordered = [[g for _, g in sorted(zip(s, gains, strict=True), reverse=True)] for s, gains, _ in mine]
        oracle = [defined(gains, k, absent) for gains, (_, _, absent) in zip(ordered, mine, strict=True)]
        for name, metric in RANK_METRICS.items():
            got = metric(users.scores, users.relevance, k, users.mask, users.total)
            np.testing.assert_allclose(got, [one[name] for one in oracle], rtol=0, atol=1e-12, err_msg=name)


def _runs(
    users: Sequence[tuple[list[float], list[float], int]],
) -> tuple[dict[str, dict[str, int]], dict[str, dict[str, float]]]:
    """The users who have a relevant item, as trec_eval and ranx read them: judgements, and scores."""
    judged, scored = {}, {}
    for user, (scores, gains, absent) in enumerate(users):
        truth = {f"i{item}": int(gain) for item, gain in enumerate(gains) if gain > 0}
        truth |= {f"absent{item}": 1 for item in range(absent)}
        if truth:
            judged[f"u{user}"] = truth
            scored[f"u{user}"] = {f"i{item}": score for item, score in enumerate(scores)}
    return judged, scored


def test_ten_thousand_users_without_ties_equal_trec_eval(
    tie_free: list[tuple[list[float], list[float], int]],
) -> None:
    import pytrec_eval

    users = padded(tie_free)
    judged, scored = _runs(tie_free)
    names = {
        "hit_rate": "success",
        "recall": "recall",
        "precision": "P",
        "average_precision": "map_cut",
        "ndcg": "ndcg_cut",
    }
    measures = {f"{name}.3,10" for name in names.values()} | {"recip_rank"}
    found = pytrec_eval.RelevanceEvaluator(judged, measures).evaluate(scored)
    rows = [int(user[1:]) for user in found]
    assert len(rows) > 8_000
    for (name, theirs), k in itertools.product(names.items(), (3, 10)):
        got = RANK_METRICS[name](users.scores, users.relevance, k, users.mask, users.total)[rows]
        want = [one[f"{theirs}_{k}"] for one in found.values()]
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-9, err_msg=f"{name}@{k}")
    got = metrics.reciprocal_rank(users.scores, users.relevance, None, users.mask, users.total)[rows]
    np.testing.assert_allclose(got, [one["recip_rank"] for one in found.values()], rtol=0, atol=1e-9)


def test_users_without_ties_equal_ranx(
    tie_free: list[tuple[list[float], list[float], int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")  # compiling takes longer than computing
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numba's, about its own types
        import ranx

        users = padded(tie_free)
        judged, scored = _runs(tie_free)
        names = {
            "hit_rate": "hit_rate",
            "recall": "recall",
            "precision": "precision",
            "reciprocal_rank": "mrr",
            "average_precision": "map",
            "ndcg": "ndcg",
        }
        measures = [f"{name}@5" for name in names.values()]
        found: Any = ranx.evaluate(ranx.Qrels(judged), ranx.Run(scored), measures, return_mean=False)
    # ranx sorts the users by name.
    rows = [int(user[1:]) for user in sorted(judged)]
    for name, theirs in names.items():
        got = RANK_METRICS[name](users.scores, users.relevance, 5, users.mask, users.total)[rows]
        np.testing.assert_allclose(got, found[f"{theirs}@5"], rtol=0, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("k", [1, 3, 10, 25])
def test_ndcg_of_tied_scores_equals_scikit_learn(k: int) -> None:
    rng = np.random.default_rng(1)
    scores, gains = rng.integers(0, 5, (200, 20)).astype(float), rng.integers(0, 4, (200, 20)).astype(float)
    got = metrics.ndcg(torch.tensor(scores), torch.tensor(gains), k)
    want = [ndcg_score(gains[[row]], scores[[row]], k=k) for row in range(200)]
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-9)


def tied_users(width: int = 15) -> Users:
    generator = torch.Generator().manual_seed(3)
    scores = torch.randint(-4, 5, (50, width), generator=generator).double()
    relevance = torch.randint(0, 6, (50, width), generator=generator).sub(3).clamp(min=0).double()
    mask = torch.rand(50, width, generator=generator) < 0.8
    return Users(scores, relevance, mask, ((relevance > 0) & mask).sum(1) + 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "transform",
    [
        torch.exp,
        lambda s: 3 * s - 100,
        lambda s: s.exp() / s.exp().sum(1, keepdim=True),
        lambda s: s - 50.0,  # log-probabilities, all negative
        lambda s: -torch.exp(-s),
    ],
    ids=["exp", "3s-100", "softmax", "log-probability", "-exp(-s)"],
)
def test_increasing_transforms_change_nothing(transform: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    users = tied_users()
    moved = users._replace(scores=transform(users.scores.to(dtype)))
    assert moved.scores.dtype == dtype
    for name, metric in RANK_METRICS.items():
        before, after = (metric(u.scores, u.relevance, 5, u.mask, u.total) for u in (users, moved))
        assert torch.equal(before, after), name
    assert torch.equal(metrics.tie_rate(users.scores, users.mask), metrics.tie_rate(moved.scores, moved.mask))


def test_the_order_of_candidates_and_users_changes_nothing() -> None:
    users = tied_users()
    generator = torch.Generator().manual_seed(4)
    column = torch.rand(users.scores.shape, generator=generator).argsort(1)
    row = torch.randperm(len(users.scores), generator=generator)
    scores, relevance, mask = (table.gather(1, column)[row] for table in users[:3])
    moved = Users(scores, relevance, mask, users.total[row])
    for metric in RANK_METRICS.values():
        before, after = (metric(u.scores, u.relevance, 4, u.mask, u.total) for u in (users, moved))
        torch.testing.assert_close(before[row], after, rtol=0, atol=1e-14)


@pytest.mark.parametrize("n", [2, 7, 20, 100])
def test_a_constant_scorer_has_exactly_k_of_n_hits(n: int) -> None:
    relevance = torch.eye(n)  # the relevant item at each place
    for k in range(1, n + 1):
        assert metrics.hit_rate(torch.full((n, n), 0.3), relevance, k).tolist() == [k / n] * n


@pytest.mark.parametrize(("rank", "value"), [(1, 1.0), (2, 0.6309297535714575), (3, 0.5), (11, 0.0)])
def test_ndcg_at_10_of_one_relevant_item(rank: int, value: float) -> None:
    scores = -torch.arange(12.0)[None]
    assert metrics.ndcg(scores, torch.eye(12)[[rank - 1]], 10).item() == pytest.approx(value, abs=1e-15)


def test_full_catalogue_of_constant_scores_keeps_its_precision() -> None:
    items, relevant, k = 12_000, 40, 10
    relevance = torch.zeros(1, items)
    relevance[0, ::300] = 1
    missed = math.prod((items - relevant - i) / (items - i) for i in range(k))
    got = metrics.hit_rate(torch.zeros(1, items), relevance, k).item()
    assert got == pytest.approx(1 - missed, rel=1e-9)
    # The chance that the best relevant item stands at a rank, by the product rule.
    later, reciprocal = 1.0, 0.0
    for place in range(items - relevant + 1):
        reciprocal += later * relevant / (items - place) / (place + 1)
        later *= (items - place - relevant) / (items - place)
    got = metrics.reciprocal_rank(torch.zeros(1, items), relevance).item()
    assert got == pytest.approx(reciprocal, rel=1e-9)


def test_large_tables_are_ranked_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    users = tied_users()
    whole = metrics.ndcg(users.scores, users.relevance, 5, users.mask, users.total)
    monkeypatch.setattr("recmodels.metrics.ties._CELLS", 40)
    assert torch.equal(metrics.ndcg(users.scores, users.relevance, 5, users.mask, users.total), whole)


def test_tables_in_any_memory_layout_are_read() -> None:
    users = tied_users()
    turned = [table.T.contiguous().T for table in users[:3]]
    assert not turned[0].is_contiguous()
    got = metrics.average_precision(turned[0], turned[1], 5, turned[2], users.total)
    assert torch.equal(got, metrics.average_precision(*users[:2], 5, *users[2:]))


def test_tie_rate_counts_any_tie_among_real_candidates() -> None:
    scores = torch.tensor([[1.0, 1.0, 2.0], [1.0, 1.0, 2.0], [1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
    mask = torch.tensor([[1, 1, 1], [1, 0, 1], [1, 1, 1], [0, 0, 0]], dtype=torch.bool)
    assert metrics.tie_rate(scores, mask).tolist() == [1.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("metric", [*RANK_METRICS.values(), metrics.tie_rate])
def test_scores_that_are_not_finite_are_refused_with_their_user(metric: Metric, bad: float) -> None:
    scores, relevance = torch.zeros(5, 3), torch.ones(5, 3)
    scores[3:, 1] = bad
    arguments = (scores,) if metric is metrics.tie_rate else (scores, relevance, 2)
    with pytest.raises(ValueError, match="NaN or infinite score among the candidates of user 3"):
        metric(*arguments)
    mask = torch.isfinite(scores)
    assert bool(torch.isfinite(metric(*arguments, mask=mask)).all())  # in padding they do no harm


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"relevance": torch.tensor([[1.0, 0.0], [-1.0, 0.0]])}, "gain below 0 or not finite of user 1"),
        ({"relevance": torch.tensor([[1.0, 0.0], [math.nan, 0.0]])}, "gain below 0 or not finite of user 1"),
        ({"relevance": torch.ones(2, 3)}, r"relevance \(2, 3\) must fit"),
        ({"mask": torch.ones(2, dtype=torch.bool)}, r"mask \(2,\) must fit"),
        ({"scores": torch.zeros(2)}, r"scores \(2,\) must be \[U, C\]"),
        ({"total_relevant": torch.tensor([1, 0])}, "below the number in the list, of user 1"),
        ({"total_relevant": torch.tensor([1.5, 1.0])}, "no whole number.* of user 0"),
        ({"total_relevant": torch.ones(3)}, r"total_relevant \(3,\) must fit"),
        ({"k": 0}, "cut-off k is 0"),
    ],
)
def test_wrong_input_is_refused(change: dict[str, Any], message: str) -> None:
    right = {"scores": torch.zeros(2, 2), "relevance": torch.eye(2), "k": 1}
    for metric in RANK_METRICS.values():
        with pytest.raises(ValueError, match=message):
            metric(**(right | change))


@pytest.mark.parametrize(("users", "width"), [(0, 4), (3, 0), (0, 0)])
def test_tables_without_users_or_candidates(users: int, width: int) -> None:
    scores = torch.zeros(users, width)
    for metric in RANK_METRICS.values():
        assert bool(metric(scores, scores, 5).isnan().all())
        assert metric(scores, scores, 5, None, torch.ones(users)).tolist() == [0.0] * users


@pytest.mark.parametrize("parts", [1, 7, 50])
def test_the_metric_class_equals_the_functions_over_updates_and_merges(parts: int) -> None:
    users = tied_users()
    users.relevance[3:6] = 0
    total = ((users.relevance > 0) & users.mask).sum(1)
    first, second = RankingMetrics((10, 1, 5, 5)), RankingMetrics((1, 5, 10))
    for part, rows in enumerate(torch.arange(50).tensor_split(parts)):
        one = first if part % 2 or parts == 1 else second
        one.update(users.scores[rows], users.relevance[rows], users.mask[rows], total[rows])
    if parts > 1:
        for name in ("sums", "longer", "skipped"):  # what a sum over processes does
            setattr(first, name, getattr(first, name) + getattr(second, name))
    got = first.compute()
    want = {
        f"{short}@{k}": metric(users.scores, users.relevance, k, users.mask).nanmean()
        for short, metric in (("hr", metrics.hit_rate), ("ndcg", metrics.ndcg))
        for k in (1, 5, 10)
    }
    want["mrr"] = metrics.reciprocal_rank(users.scores, users.relevance, mask=users.mask).nanmean()
    want["tie_rate"] = metrics.tie_rate(users.scores, users.mask)[total > 0].mean()
    skipped = (total == 0).sum().double()
    want |= {"users": 50 - skipped, "skipped_users": skipped}
    assert list(got) == list(want)
    assert skipped >= 3
    torch.testing.assert_close(got, want, rtol=1e-14, atol=0)


def test_two_metric_objects_merge() -> None:
    users, merged, whole = tied_users(), RankingMetrics((3,)), RankingMetrics((3,))
    other = RankingMetrics((3,))
    merged.update(users.scores[:20], users.relevance[:20])
    other.update(users.scores[20:], users.relevance[20:])
    whole.update(users.scores, users.relevance)
    merged.merge_state(other)
    torch.testing.assert_close(merged.compute(), whole.compute(), rtol=1e-14, atol=0)


def test_a_cutoff_that_reaches_every_list_is_left_out_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    scores = torch.rand(4, 10, generator=torch.Generator().manual_seed(0))
    metric = RankingMetrics((5, 10, 20))
    metric.update(scores, torch.ones(4, 10))
    values = metric.compute()
    assert "cut-offs [10, 20] are left out" in caplog.text
    assert set(values) == {"hr@5", "ndcg@5", "mrr", "tie_rate", "users", "skipped_users"}
    metric.update(torch.rand(1, 11), torch.ones(1, 11))  # one longer list makes 10 informative
    caplog.clear()
    assert "hr@10" in metric.compute()
    assert "cut-offs [20] are left out" in caplog.text
    assert metrics.informative_cutoffs((1, 9, 10, 11), 10) == (1, 9)


@pytest.mark.parametrize("cutoffs", [(), (5, 0), (-1,)])
def test_cutoffs_below_one_are_refused(cutoffs: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="cutoffs are"):
        RankingMetrics(cutoffs)


def test_sums_stay_exact_in_a_model_cast_to_bfloat16() -> None:
    metric = RankingMetrics((1,))
    torch.nn.ModuleList([metric]).to(torch.bfloat16)
    for _ in range(3):
        metric.update(torch.tensor([[2.0, 1.0]]).expand(301, 2), torch.tensor([[1, 0]]).expand(301, 2))
    assert metric.compute()["users"].item() == 903.0
    assert metric.compute()["hr@1"].item() == 1.0


def binary_cases(size: int = 400, seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    probability = rng.integers(1, 50, size) / 50  # with ties
    return torch.tensor(probability), torch.tensor(rng.random(size) < probability).long()


def test_yes_no_metrics_equal_scikit_learn() -> None:
    p, label = binary_cases()
    assert calibration.auc(p, label).item() == pytest.approx(roc_auc_score(label, p), abs=1e-12)
    assert calibration.log_loss(p, label).item() == pytest.approx(sklearn_log_loss(label, p), abs=1e-12)
    assert calibration.brier_score(p, label).item() == pytest.approx(brier_score_loss(label, p), abs=1e-12)


def test_auc_reads_any_finite_scores_and_their_order_only() -> None:
    p, label = binary_cases()
    want = calibration.auc(p, label)
    for moved in (p.log(), 3 * p - 100, p.exp(), p.float()):
        assert torch.equal(calibration.auc(moved, label), want)
    order = torch.randperm(len(p), generator=torch.Generator().manual_seed(0))
    assert torch.equal(calibration.auc(p[order], label[order]), want)
    assert calibration.auc(torch.zeros(5), torch.tensor([1, 0, 0, 0, 1])).item() == 0.5


def test_user_auc_equals_scikit_learn_for_each_user() -> None:
    p, label = binary_cases(2_000)
    user = torch.randint(0, 300, (2_000,), generator=torch.Generator().manual_seed(5)) * 7
    values, users, left_out = calibration.user_auc(p, label, user)
    want = {}
    for one in sorted(set(user.tolist())):
        mine = user == one
        if 0 < int(label[mine].sum()) < int(mine.sum()):
            want[one] = roc_auc_score(label[mine], p[mine])
    assert users.tolist() == list(want)
    np.testing.assert_allclose(values, list(want.values()), rtol=0, atol=1e-12)
    assert left_out == len(set(user.tolist())) - len(want) > 0
    none, nobody, out = calibration.user_auc(p[:1], label[:1], user[:1])
    assert (len(none), len(nobody), out) == (0, 0, 1)


@pytest.mark.parametrize("label", [0, 1])
def test_auc_of_one_class_is_refused(label: int) -> None:
    with pytest.raises(ValueError, match=f"needs both classes; {label * 3} of 3"):
        calibration.auc(torch.rand(3), torch.full((3,), label))


@pytest.mark.parametrize(
    "measure", [calibration.log_loss, calibration.brier_score, calibration.expected_calibration_error]
)
def test_what_is_no_probability_or_no_label_is_refused(measure: Metric) -> None:
    label = torch.tensor([0, 1])
    for bad in (1.5, -0.1, math.nan):
        with pytest.raises(ValueError, match="probabilities must lie between 0 and 1, found"):
            measure(torch.tensor([0.5, bad]), label)
    with pytest.raises(ValueError, match="labels must be 0 or 1, found -1"):
        measure(torch.tensor([0.5, 0.5]), torch.tensor([-1, 1]))
    with pytest.raises(ValueError, match=r"must both be \[N\]"):
        measure(torch.tensor([0.5]), label)
    with pytest.raises(ValueError, match="NaN or infinite score of case 1"):
        calibration.auc(torch.tensor([0.5, math.nan]), label)


def test_calibrated_probabilities_have_almost_no_calibration_error() -> None:
    rng = np.random.default_rng(0)
    p = rng.random(200_000)
    label = torch.tensor(rng.random(200_000) < p).long()
    assert calibration.expected_calibration_error(torch.tensor(p), label).item() <= 0.01
    # Half the distance to certainty, upwards: off by (1 - p) / 2, a quarter on average.
    assert calibration.expected_calibration_error(torch.tensor((1 + p) / 2), label).item() == pytest.approx(
        0.25, abs=0.01
    )


def test_reliability_bins_are_closed_above() -> None:
    p = torch.tensor([0.0, 0.1, 0.10001, 0.2, 1.0, 0.7, 0.3], dtype=torch.float64)
    cases, confidence, positives = calibration.reliability_bins(p, torch.tensor([0, 1, 0, 1, 1, 0, 0]))
    assert cases.tolist() == [2, 2, 1, 0, 0, 0, 1, 0, 0, 1]
    assert confidence[0].item() == pytest.approx(0.05)
    assert positives[:3].tolist() == [0.5, 0.5, 0.0]
    assert bool(confidence[3].isnan())
    with pytest.raises(ValueError, match="bins is 0"):
        calibration.reliability_bins(p, p.round().long(), bins=0)


def test_calibration_error_equals_torchmetrics() -> None:
    from torchmetrics.functional.classification import binary_calibration_error

    rng = np.random.default_rng(2)
    p, label = torch.tensor(rng.random(3_000) ** 2), torch.tensor(rng.integers(0, 2, 3_000))
    for bins in (1, 7, 15):
        want = binary_calibration_error(p, label, n_bins=bins).item()
        got = calibration.expected_calibration_error(p, label, bins).item()
        assert got == pytest.approx(want, abs=1e-6)  # theirs counts in float32


def test_the_yes_no_class_equals_the_functions_over_updates_and_merges() -> None:
    p, label = binary_cases()
    first, second = BinaryMetrics(), BinaryMetrics()
    for part, rows in enumerate(torch.arange(len(p)).tensor_split(9)):
        (first if part % 2 else second).update(p[rows], label[rows])
    first.merge_state(second)
    want = {
        "auc": calibration.auc(p, label),
        "log_loss": calibration.log_loss(p, label),
        "accuracy": ((p > 0.5).long() == label).double().mean(),
        "brier": calibration.brier_score(p, label),
        "ece": calibration.expected_calibration_error(p, label),
        "positives": label.sum().double(),
        "cases": torch.tensor(400.0).double(),
    }
    got = first.compute()
    assert list(got) == list(want)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=0)


def test_one_class_has_no_auc_and_the_other_metrics() -> None:
    metric = BinaryMetrics()
    metric.update(torch.tensor([0.75, 0.25]), torch.tensor([1, 1]))
    values = metric.compute()
    assert math.isnan(values.pop("auc"))
    assert values["accuracy"].item() == 0.5
    assert all(bool(torch.isfinite(value)) for value in values.values())
