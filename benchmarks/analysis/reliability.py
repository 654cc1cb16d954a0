"""Reliability of stored probabilities, without torch; the training-time measures are in `recmodels.metrics.binary`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
BINS = 10


def reliability(probability: Floats, label: Floats, bins: int = BINS) -> tuple[Floats, Floats, Floats]:
    """Cases, mean probability and share of positives in bins [0, 1/B], (1/B, 2/B], ...; NaN in empty ones.

    Example:
        >>> [column.tolist() for column in reliability(np.array([0.25, 0.75, 0.5]), np.array([0.0, 1.0, 1.0]), bins=2)]
        [[2.0, 1.0], [0.375, 0.75], [0.5, 1.0]]
    """
    bin_index = np.searchsorted(np.arange(1, bins) / bins, probability, side="left")
    columns = (np.ones(len(label)), probability, label)
    total, confidence, positives = (_sums(bin_index, column, bins) for column in columns)
    with np.errstate(invalid="ignore"):
        return total, confidence / total, positives / total


def _sums(place: NDArray[np.int64], column: Floats, bins: int) -> Floats:
    return np.bincount(place, weights=column, minlength=bins).astype(np.float64)


def calibration_error(probability: Floats, label: Floats, bins: int = BINS) -> float:
    """Distance of mean probability and share of positives, averaged over the bins by cases; NaN without cases.

    Arguments are those of `reliability`.

    Example:
        >>> calibration_error(np.array([0.75, 0.75]), np.array([1.0, 0.0]))
        0.25
    """
    total, confidence, positives = reliability(probability, label, bins)
    return float(np.nansum(total * np.abs(confidence - positives)) / total.sum()) if len(label) else float("nan")
