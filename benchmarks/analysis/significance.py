"""Uncertainty of benchmark numbers: the bootstrap over users, paired tests, many comparisons.

Resampling users says nothing about the variance of training; show seeds beside it. Wilcoxon and sign tests
are left out on purpose: their error is inflated on data of this size (Ihemelandu and Ekstrand 2023, arXiv
2305.02461). All randomness comes from a seed; the order of the users does not matter.

# U users, R resamples, N yes/no cases, D distinct values
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
_CELLS = 1 << 22  # numbers drawn at once, about 70 MB with their indices
_ROUNDING = 1e-12  # of the largest difference; means closer than this are equal


@dataclass(frozen=True)
class PairedComparison:
    """Difference of two systems on the same users.

    Attributes:
        difference: mean of a - b over users.
        low: lower end of its interval.
        high: upper end of its interval.
        p_value: two-sided, of the hypothesis that the difference is zero.
        effect_size: Cohen's d_z, the mean difference in units of its standard deviation over users; 0 where
            no user differs, infinite where all differ by the same, NaN for one user.
        users: number of users compared.
    """

    difference: float
    low: float
    high: float
    p_value: float
    effect_size: float
    users: int


def _by_user(values: ArrayLike) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"values must be one per user, their shape is {array.shape}")
    if np.isinf(array).any():
        raise ValueError(f"value of user {int(np.isinf(array).argmax())} is infinite")
    return array


def _check(confidence: float, resamples: int) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}, must be between 0 and 1")
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}, must be at least 1")


def _chunks(resamples: int, width: int) -> Iterator[int]:
    step = max(1, _CELLS // max(1, width))
    for begin in range(0, resamples, step):
        yield min(step, resamples - begin)


def _resampled_means(values: Floats, resamples: int, seed: int) -> Floats:
    """Means `[R]` of resamples of U users, drawn with replacement."""
    rng = np.random.default_rng(seed)
    users = len(values)
    distinct, counts = np.unique(values, return_counts=True)
    if len(distinct) * 8 < users:
        # A resample is known by how often it holds each value; rank metrics take few values.
        drawn = (rng.multinomial(users, counts / users, size=rows) for rows in _chunks(resamples, len(distinct)))
        return np.concatenate([rows @ distinct for rows in drawn]) / users
    values = np.sort(values)
    chunks = _chunks(resamples, users)
    return np.concatenate([values[rng.integers(users, size=(rows, users))].mean(axis=1) for rows in chunks])


def _percentiles(drawn: Floats, confidence: float) -> tuple[float, float]:
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return float(low), float(high)


def bootstrap_interval(
    values: ArrayLike, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean over users (Efron 1979).

    It is somewhat short for few users: with 20, a 95 % interval covers about 92 %. Users with a NaN are dropped; NaN
    without users.

    Raises:
        ValueError: a value is infinite, or an argument is out of its range.

    Example:
        >>> low, high = bootstrap_interval([0.0, 1.0] * 200)
        >>> 0.44 < low < 0.5 < high < 0.56
        True
    """
    _check(confidence, resamples)
    counted = _by_user(values)
    counted = counted[~np.isnan(counted)]
    if len(counted) == 0:
        return float("nan"), float("nan")
    if np.ptp(counted) == 0:  # a mean of equal numbers may be off in the last digit
        return float(counted[0]), float(counted[0])
    return _percentiles(_resampled_means(counted, resamples, seed), confidence)


def bootstrap_auc_interval(
    scores: ArrayLike, labels: ArrayLike, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the pooled AUC; cases with label 1 and with label 0 are resampled apart.

    Raises:
        ValueError: one class is missing, a score is NaN or infinite, a label is neither 0 nor 1, or an
            argument is out of its range.

    Example:
        >>> bootstrap_auc_interval([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1])
        (1.0, 1.0)
    """
    _check(confidence, resamples)
    score, label = np.asarray(scores, dtype=np.float64), np.asarray(labels)
    if score.ndim != 1 or score.shape != label.shape:
        raise ValueError(f"scores {score.shape} and labels {label.shape} must both be [N]")
    if not np.isfinite(score).all():
        raise ValueError(f"score of case {int((~np.isfinite(score)).argmax())} is NaN or infinite")
    if not np.isin(label, (0, 1)).all():
        raise ValueError("labels must be 0 or 1")
    distinct, place = np.unique(score, return_inverse=True)
    positive, negative = np.sort(place[label == 1]), np.sort(place[label == 0])
    if not len(positive) or not len(negative):
        raise ValueError(f"an AUC interval needs both classes; {len(positive)} of {len(label)} are positive")
    rng = np.random.default_rng(seed)
    drawn = np.empty(resamples)
    for r in range(resamples):
        count = np.bincount(negative[rng.integers(len(negative), size=len(negative))], minlength=len(distinct))
        beaten = count.cumsum() - count / 2  # negatives below each distinct score, ties one half
        drawn[r] = beaten[positive[rng.integers(len(positive), size=len(positive))]].mean() / len(negative)
    return _percentiles(drawn, confidence)


def _differences(a: ArrayLike, b: ArrayLike) -> Floats:
    left, right = _by_user(a), _by_user(b)
    if left.shape != right.shape:
        raise ValueError(f"paired values must be of the same users: {len(left)} against {len(right)}")
    difference = left - right
    difference = difference[~np.isnan(difference)]
    if len(difference) == 0:
        raise ValueError("no user has a value of both systems")
    return difference


def _effect_size(difference: Floats) -> float:
    mean, largest = float(difference.mean()), float(np.abs(difference).max())
    if largest == 0:
        return 0.0
    if len(difference) == 1:
        return float("nan")
    spread = float(difference.std(ddof=1))
    return mean / spread if spread > _ROUNDING * largest else float(np.copysign(np.inf, mean))


def paired_bootstrap(
    a: ArrayLike, b: ArrayLike, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> PairedComparison:
    """Compares two systems on the same users by resampling users; those with a NaN in either are dropped.

    The p-value is of the bootstrap distribution moved to a mean of zero (Efron and Tibshirani 1993, chapter
    16), never below 1 / (R + 1). As with the interval, it is somewhat small for few users; use
    `paired_randomization` there.

    Raises:
        ValueError: the lengths differ, no user has both values, a value is infinite, or an argument is out
            of its range.

    Example:
        >>> paired_bootstrap([1.0, 1.0, 0.0], [1.0, 1.0, 0.0]).p_value
        1.0
    """
    _check(confidence, resamples)
    difference = _differences(a, b)
    observed = float(difference.mean())
    means = _resampled_means(difference, resamples, seed)
    low, high = _percentiles(means, confidence)
    rounding = _ROUNDING * float(np.abs(difference).max())
    extreme = int((np.abs(means - observed) >= abs(observed) - rounding).sum())
    return PairedComparison(
        difference=observed,
        low=low,
        high=high,
        p_value=(extreme + 1) / (resamples + 1),
        effect_size=_effect_size(difference),
        users=len(difference),
    )


def paired_randomization(a: ArrayLike, b: ArrayLike, resamples: int = 10_000, seed: int = 0) -> float:
    """Two-sided p-value of Fisher's randomisation test: signs of users' differences are flipped at random.

    Valid for any number of users, where under the hypothesis a user's two values could be exchanged; never below
    1 / (R + 1). Users with a NaN in either are dropped.

    Raises:
        ValueError: the lengths differ, no user has both values, or a value is infinite.

    Example:
        >>> paired_randomization([1.0] * 20, [0.0] * 20) < 0.001
        True
    """
    _check(0.5, resamples)
    difference = np.sort(_differences(a, b))
    difference = difference[difference != 0]  # zeros have no sign
    if len(difference) == 0:
        return 1.0
    rng = np.random.default_rng(seed)
    bound = abs(difference.sum()) - _ROUNDING * np.abs(difference).max() * len(difference)
    extreme = 0
    for rows in _chunks(resamples, len(difference)):
        signs = rng.integers(2, size=(rows, len(difference)), dtype=np.int8)
        extreme += int((np.abs(2 * (signs @ difference) - difference.sum()) >= bound).sum())
    return (extreme + 1) / (resamples + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted by Holm's step-down procedure (1979), in the given order.

    Calling those below alpha significant keeps the chance of any false call at alpha.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    for place, p in enumerate(p_values):
        if not 0 <= p <= 1:
            raise ValueError(f"p-value {place} is {p}, must be between 0 and 1")
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for step, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - step) * p_values[place]))
        adjusted[place] = largest
    return adjusted
