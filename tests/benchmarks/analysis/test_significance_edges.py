"""Edges of intervals and tests that no other test held: each case is a change of one line that all others let pass."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from benchmarks.analysis.significance import (
    bootstrap_auc_interval,
    bootstrap_interval,
    paired_bootstrap,
    paired_randomization,
)

A, B = np.random.default_rng(5).random((2, 40))
LABELS = (np.arange(40) % 2).tolist()
TESTS: list[Callable[..., Any]] = [
    lambda **options: bootstrap_interval(A, **options),
    lambda **options: bootstrap_auc_interval(A, LABELS, **options),
    lambda **options: paired_bootstrap(A, B, **options),
    lambda **options: paired_randomization(A, B, **options),
]


@pytest.mark.parametrize("test", TESTS)
def test_a_seed_repeats_and_its_default_is_zero(test: Callable[..., Any]) -> None:
    assert test(resamples=50) == test(resamples=50) == test(resamples=50, seed=0)
    assert test(resamples=50) != test(resamples=50, seed=1)


def test_defaults_are_those_that_the_pages_name() -> None:
    assert bootstrap_interval(A) == bootstrap_interval(A, 0.95, 2000, 0)
    assert bootstrap_auc_interval(A, LABELS) == bootstrap_auc_interval(A, LABELS, 0.95, 2000, 0)
    assert paired_bootstrap(A, B) == paired_bootstrap(A, B, 0.95, 10_000, 0)
    assert bootstrap_interval(A) != bootstrap_interval(A, resamples=2001)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 1.5])
def test_confidence_lies_between_its_bounds(confidence: float) -> None:
    with pytest.raises(ValueError, match="confidence"):
        bootstrap_interval(A, confidence)


def test_one_resample_is_enough_to_run() -> None:
    low, high = bootstrap_interval(A, resamples=1)
    assert low == high


def test_equal_scores_are_one_half() -> None:
    """Every case has the same score: each resample's AUC is one half, whatever was drawn."""
    assert bootstrap_auc_interval([0.7] * 10, [0, 1] * 5) == (0.5, 0.5)


def test_whole_numbers_are_read_as_numbers() -> None:
    assert bootstrap_interval([0, 1] * 30) == bootstrap_interval([0.0, 1.0] * 30)
    assert bootstrap_interval(["0", "1"] * 30) == bootstrap_interval([0.0, 1.0] * 30)


def test_a_pattern_as_far_out_as_the_observed_one_counts() -> None:
    """Two users who differ by the same amount: two of the four sign patterns are as extreme, so p is near one half."""
    assert paired_randomization([1.0, 1.0], [0.0, 0.0], 2000) == pytest.approx(0.5, abs=0.05)
    # .1 + .2 differs from .3 in the last digit, so that equally extreme sums are equal only up to rounding
    p = paired_randomization([0.1, 0.2, 0.3], [0.0, 0.0, 0.0], 4000)
    assert p == pytest.approx(0.25, abs=0.03)


def test_equal_differences_are_extreme_in_every_resample_of_none() -> None:
    found = paired_bootstrap([0.3] * 12, [0.1] * 12, resamples=200)
    assert found.p_value == pytest.approx(1 / 201)
    assert math.isinf(found.effect_size)
