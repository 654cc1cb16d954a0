"""Intervals and tests: against scipy and scikit-learn, hand examples, and simulations of their error rates."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from benchmarks.analysis import significance as statistics
from benchmarks.analysis.significance import (
    PairedComparison,
    bootstrap_auc_interval,
    bootstrap_interval,
    holm,
    paired_bootstrap,
    paired_randomization,
)


def few_values(users: int, seed: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.random.default_rng(seed).choice([0.0, 0.5, 0.63, 1.0], p=[0.6, 0.2, 0.1, 0.1], size=users)


def many_values(users: int, seed: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.random.default_rng(seed).beta(1, 3, size=users)


# Metrics with few distinct values are resampled by counts, others by users: both ways are tested.
BOTH = pytest.mark.parametrize("draw", [few_values, many_values])


@BOTH
def test_the_interval_equals_scipys(draw: Callable[..., Any]) -> None:
    values = draw(500, 0)
    ours = bootstrap_interval(values, resamples=20_000)
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
    )
    assert ours == pytest.approx(tuple(theirs.confidence_interval), abs=0.04 * (ours[1] - ours[0]))


@BOTH
def test_intervals_cover_the_true_mean_as_often_as_they_say(draw: Callable[..., Any]) -> None:
    truth = draw(1_000_000, 10**6).mean()
    runs, covered = 400, 0
    for run in range(runs):
        low, high = bootstrap_interval(draw(150, run), resamples=400, seed=run)
        covered += low <= truth <= high
    assert covered / runs == pytest.approx(0.95, abs=0.03)


@BOTH
def test_intervals_are_seeded_and_blind_to_the_order_of_users(draw: Callable[..., Any]) -> None:
    values = draw(300, 2)
    shuffled = np.random.default_rng(0).permutation(values)
    assert bootstrap_interval(values, seed=5) == bootstrap_interval(shuffled, seed=5)
    assert bootstrap_interval(values, seed=5) != bootstrap_interval(values, seed=6)
    wide, narrow = bootstrap_interval(values, confidence=0.99), bootstrap_interval(values, confidence=0.5)
    assert wide[0] < narrow[0] < values.mean() < narrow[1] < wide[1]


@BOTH
def test_memory_is_bounded_whatever_the_number_of_users(
    draw: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    values = draw(300, 2)
    whole = bootstrap_interval(values, resamples=4_000)
    monkeypatch.setattr(statistics, "_CELLS", 1_000)
    assert list(statistics._chunks(10, 300)) == [3, 3, 3, 1]
    assert bootstrap_interval(values, resamples=4_000) == pytest.approx(whole, abs=0.01)


def test_users_without_a_value_are_dropped() -> None:
    values = few_values(200, 3)
    assert bootstrap_interval([*values, math.nan, math.nan]) == bootstrap_interval(values)
    assert all(math.isnan(end) for end in bootstrap_interval([math.nan]))
    assert all(math.isnan(end) for end in bootstrap_interval([]))


@given(st.floats(-1e6, 1e6), st.integers(1, 40))
def test_equal_values_have_an_interval_of_one_point(value: float, users: int) -> None:
    assert bootstrap_interval([value] * users, resamples=5) == (value, value)


def yes_no(cases: int, seed: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    labels = rng.random(cases) < 0.4
    return np.round(rng.normal(labels * 1.0), 1), labels  # with ties


def test_auc_intervals_equal_a_plain_stratified_bootstrap() -> None:
    scores, labels = yes_no(300, 0)
    rng = np.random.default_rng(1)
    groups = [np.flatnonzero(labels), np.flatnonzero(~labels)]
    drawn = []
    for _ in range(1_000):
        rows = np.concatenate([rng.choice(group, len(group)) for group in groups])
        drawn.append(roc_auc_score(labels[rows], scores[rows]))
    want = np.quantile(drawn, [0.025, 0.975])
    got = bootstrap_auc_interval(scores, labels, resamples=5_000)
    assert got == pytest.approx(tuple(want), abs=0.008)
    assert got == bootstrap_auc_interval(scores[::-1], labels[::-1].astype(int), resamples=5_000)


def test_auc_intervals_cover_the_true_auc() -> None:
    truth = scipy.stats.norm.cdf(1 / math.sqrt(2))
    runs, covered = 300, 0
    for run in range(runs):
        rng = np.random.default_rng(run)
        labels = np.arange(200) % 3 == 0
        low, high = bootstrap_auc_interval(rng.normal(labels * 1.0), labels, resamples=300, seed=run)
        covered += low <= truth <= high
    assert covered / runs == pytest.approx(0.95, abs=0.035)


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([0.1, 0.2], [1, 1], "both classes; 2 of 2"),
        ([0.1, 0.2], [0, 0], "both classes; 0 of 2"),
        ([0.1, math.nan], [0, 1], "score of case 1 is NaN or infinite"),
        ([0.1, 0.2], [-1, 1], "labels must be 0 or 1"),
        ([0.1, 0.2], [1], r"must both be \[N\]"),
    ],
)
def test_wrong_cases_are_refused(scores: list[float], labels: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bootstrap_auc_interval(scores, labels)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bootstrap_interval([1.0], confidence=95), "confidence is 95"),
        (lambda: bootstrap_interval([1.0], resamples=0), "resamples is 0"),
        (lambda: bootstrap_interval([[1.0]]), "one per user"),
        (lambda: bootstrap_interval([1.0, math.inf]), "user 1 is infinite"),
        (lambda: paired_bootstrap([1.0, 2.0], [1.0]), "same users: 2 against 1"),
        (lambda: paired_bootstrap([1.0], [math.nan]), "no user has a value of both"),
        (lambda: paired_randomization([1.0, 2.0], [1.0]), "same users: 2 against 1"),
        (lambda: paired_randomization([1.0], [0.0], resamples=0), "resamples is 0"),
        (lambda: holm([0.5, 1.5]), "p-value 1 is 1.5"),
        (lambda: holm([math.nan]), "p-value 0 is nan"),
    ],
)
def test_wrong_arguments_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@BOTH
def test_a_comparison_is_the_interval_of_the_differences(draw: Callable[..., Any]) -> None:
    a, b = draw(400, 0), draw(400, 1)
    found = paired_bootstrap(a, b, resamples=2_000, seed=3)
    assert found.difference == pytest.approx((a - b).mean(), abs=1e-15)
    assert (found.low, found.high) == bootstrap_interval(a - b, resamples=2_000, seed=3)
    assert found.effect_size == pytest.approx((a - b).mean() / (a - b).std(ddof=1), rel=1e-12)
    assert found.users == 400
    mirrored = paired_bootstrap(b, a, resamples=2_000, seed=3)
    assert mirrored.difference == -found.difference
    assert mirrored.p_value == pytest.approx(found.p_value, abs=0.03)


@BOTH
def test_p_values_agree_with_the_t_test_and_scipys_permutations(draw: Callable[..., Any]) -> None:
    for shift in (0.0, 0.02, 0.04):
        a, b = draw(500, 0) + shift, draw(500, 1)
        want = scipy.stats.ttest_rel(a, b).pvalue
        assert paired_bootstrap(a, b).p_value == pytest.approx(want, abs=0.02)
        assert paired_randomization(a, b) == pytest.approx(want, abs=0.02)
    a, b = draw(9, 0), draw(9, 1)  # few enough to count all sign patterns

    def mean_difference(x: Any, y: Any, axis: int = -1) -> Any:
        return np.mean(x - y, axis=axis)

    exact = scipy.stats.permutation_test((a, b), mean_difference, permutation_type="samples", vectorized=True)
    assert paired_randomization(a, b, resamples=50_000) == pytest.approx(exact.pvalue, abs=0.01)


@BOTH
def test_tests_find_nothing_in_nothing_at_their_level(draw: Callable[..., Any]) -> None:
    runs = 400
    rejected = np.zeros(2)
    for run in range(runs):
        a, b = draw(150, 2 * run), draw(150, 2 * run + 1)
        p = (
            paired_bootstrap(a, b, resamples=400, seed=run).p_value,
            paired_randomization(a, b, resamples=400, seed=run),
        )
        rejected += np.array(p) < 0.05
    np.testing.assert_allclose(rejected / runs, 0.05, atol=0.03)


def test_a_true_difference_is_found() -> None:
    b = many_values(400, 0)
    a = b + np.random.default_rng(1).normal(0.05, 0.1, size=400)
    found = paired_bootstrap(a, b)
    assert found.low > 0.03
    assert found.p_value == 1 / 10_001  # none of the resamples is as extreme
    assert paired_randomization(a, b) == 1 / 10_001


def test_systems_that_do_not_differ() -> None:
    same = many_values(30, 0)
    assert paired_bootstrap(same, same) == PairedComparison(0.0, 0.0, 0.0, 1.0, 0.0, 30)
    assert paired_randomization(same, same) == 1.0


def test_effect_sizes_without_spread() -> None:
    b = np.array([0.1, 0.2, 0.3])
    assert paired_bootstrap(b + 0.1, b).effect_size == math.inf
    assert paired_bootstrap(b, b + 0.1).effect_size == -math.inf
    assert math.isnan(paired_bootstrap([0.4], [0.3]).effect_size)


def test_users_without_a_value_of_both_are_not_compared() -> None:
    found = paired_bootstrap([1.0, math.nan, 0.5, 0.2], [0.5, 0.1, math.nan, 0.1])
    assert found.users == 2
    assert found.difference == pytest.approx(0.3)


def test_holm_equals_a_hand_example() -> None:
    # Sorted .005, .01, .03, .04 times 4, 3, 2, 1 are .02, .03, .06, .04; the last is raised to .06.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02], abs=1e-15)
    assert holm([0.6, 0.5]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=12), st.sampled_from([0.01, 0.05, 0.5]))
def test_holm_rejects_as_the_step_down_procedure_does(p_values: list[float], level: float) -> None:
    adjusted = holm(p_values)
    rejected, left = set(), len(p_values)
    for place in sorted(range(len(p_values)), key=lambda i: p_values[i]):
        if left * p_values[place] > level:
            break
        rejected.add(place)
        left -= 1
    assert {place for place, p in enumerate(adjusted) if p <= level} == rejected
    assert all(p <= q <= 1 for p, q in zip(p_values, adjusted, strict=True))
