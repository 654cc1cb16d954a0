"""The per-user file of a run, read and held against what the record claims.

# U users, N yes/no cases
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.metric_names import DEFINITIONS, metric_base
from datamodules.contract.errors import InputError
from datamodules.contract.files import sha256_of

Floats = NDArray[np.float64]
Ints = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Scores:
    """What a run stored of each user or case, in order of user; a user stands there once per case.

    Attributes:
        user: `[U]` ids; for a binary task `[N]`, or empty where none were stored.
        values: per-user metric by name, `[U]` each; NaN where a user does not count.
        probability: `[N]` of a binary task.
        label: `[N]` of a binary task, 0 or 1.
    """

    user: NDArray[np.str_]
    values: dict[str, Floats]
    probability: Floats | None = None
    label: Floats | None = None


class RunFailed(Exception):
    """The record says that the run has no result, failed or unfinished; the message is its error."""

    def __init__(self, error: str, state: Literal["failed", "unfinished"] = "failed") -> None:
        super().__init__(error)
        self.state: Literal["failed", "unfinished"] = state


def read_scores(path: Path, sha256: str | None) -> Scores | None:
    """Reads `scores.npz`; None if the run stored none.

    Raises:
        InputError: the file is damaged, or not the one the record was written with.
    """
    if not path.is_file():
        return None
    if sha256 is not None and sha256_of(path) != sha256:
        raise InputError("scores.npz is not the file that record.json was written with (sha256 differs)")
    try:
        # numpy leaves a path that it cannot read open
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            wanted = [
                n for n in archive.files if n in ("user", "probability", "label") or metric_base(n) in DEFINITIONS
            ]
            arrays = {name: archive[name] for name in wanted}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"scores.npz is damaged: {str(error).splitlines()[0] if str(error) else error!r}") from error
    user = arrays.pop("user", np.empty(0, dtype=np.str_)).astype(np.str_)
    columns = {name: _column(name, array) for name, array in arrays.items()}
    probability, label = columns.pop("probability", None), columns.pop("label", None)
    if probability is not None or label is not None:
        if probability is None or label is None or len(probability) != len(label):
            raise InputError("scores.npz: probability and label must be two arrays of one length")
        return Scores(user, {}, probability, label)
    for name, values in columns.items():
        if len(values) != len(user):
            raise InputError(f"scores.npz: {name} has {len(values)} values for {len(user)} users")
    order = np.argsort(user, kind="stable")
    return Scores(user[order], {name: values[order] for name, values in columns.items()})


def _column(name: str, array: NDArray[Any]) -> Floats:
    if array.ndim != 1 or array.dtype.kind not in "fiub":
        raise InputError(f"scores.npz: {name} is {array.dtype} of shape {array.shape}, must be one row of numbers")
    return array.astype(np.float64)


def check_agreement(metrics: Mapping[str, float], scores: Scores | None) -> None:
    """What is recorded must follow from the scores: a number edited by hand must not reach a table."""
    if scores is None:
        return
    stored = {name: float(v[~np.isnan(v)].mean()) for name, v in scores.values.items() if not np.isnan(v).all()}
    if scores.probability is not None and scores.label is not None:
        stored["auc"] = _auc(scores.probability, scores.label)
    for name, value in stored.items():
        # Rounding may reorder two probabilities; a mean of stored values may not differ.
        if name in metrics and abs(value - metrics[name]) > (1e-3 if name == "auc" else 1e-4):
            raise InputError(f"record.json says test/{name} = {metrics[name]:.4f}, scores.npz gives {value:.4f}")


def _auc(probability: Floats, label: Floats) -> float:
    """Area under the curve by mean ranks; NaN where one class is absent."""
    _, place, count = np.unique(probability, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2)[place]
    positives = float(label.sum())
    pairs = positives * (len(label) - positives)
    return (float(rank[label == 1].sum()) - positives * (positives + 1) / 2) / pairs if pairs else math.nan
