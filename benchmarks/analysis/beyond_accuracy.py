"""Beyond accuracy and by segment, from what runs stored: nothing here loads a model or data.

# U lists or cases, B entries of all lists, I items
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.analysis.exposure import (
    chances,
    coverage,
    diversity,
    gini,
    item_novelty,
    item_percentile,
    mean_of_shown,
    rank_correlation,
)
from benchmarks.analysis.leaderboard import Table
from benchmarks.analysis.reliability import calibration_error
from benchmarks.analysis.rows import Row
from benchmarks.analysis.runs import Run
from benchmarks.analysis.scores import Floats, Ints
from benchmarks.analysis.segments import Gap, group_gap, group_segments, item_segments, user_segments
from benchmarks.analysis.significance import bootstrap_interval
from benchmarks.paths import scores_path

DEFINITIONS = {
    "coverage": "share of the catalogue that at least one list shows among its first k",
    "gini": "Gini index of how often each item of the catalogue is shown: 0 equally often, 1 one item only",
    "popularity": "mean share of the catalogue that is less popular in training than a shown item",
    "novelty": "mean self-information of a shown item in bits: -log2 of its share of training events, one added to each",
    "diversity": "mean cosine distance between two shown items of a list, by their categories or their titles' words",
    "as_blank": "mean rank correlation (Spearman) of a list's scores with those of the same items without a history: 1 where"
    " the history moved nothing (lower is more of the user's own)",
    "ece": "expected calibration error of Yes over ten bins of equal width (lower is better)",
    "brier": "mean squared distance of the probability of Yes and the answer (lower is better)",
}


@dataclass(frozen=True)
class Facts:
    """What the cases and items of a run are, in the order of its stored scores.

    Attributes:
        user: `[U]` ids.
        popularity: `[I]` training events of each item.
        history: `[U]` events before each case.
        target: `[U]` item each case asks about.
        feature_start: `[I + 1]` where each item's features begin.
        feature: numbers of the features.
        groups: `[U]` names of groups by profile column.
        blank: `[I]` scores for a user without a history; None where nobody asked for them.
    """

    user: NDArray[np.str_]
    popularity: Ints
    history: Ints
    target: Ints
    feature_start: Ints
    feature: Ints
    groups: dict[str, NDArray[np.str_]]
    blank: Floats | None = None


@dataclass(frozen=True)
class Lists:
    """The ranked lists of a run: `[B]` item and score, `[U + 1]` where each list begins."""

    item: Ints
    score: Floats
    start: Ints


@dataclass(frozen=True)
class Segment:
    """One row's result on some of the cases; the interval is a bootstrap over them."""

    of: str
    name: str
    cases: int
    value: float
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Beyond:
    """A table's results beside accuracy, by row name; what a run did not store is absent.

    Attributes:
        cutoff: k of the list metrics.
        values: metric by name.
        segments: results on cold and warm users, head and tail items, and groups of profiles.
        gaps: by profile column.
        chosen: metrics of the items that users really chose.
        offered: items that any list could have shown, and items in the catalogue.
        without: rows that stored too little.
    """

    cutoff: int
    values: dict[str, dict[str, float]] = field(default_factory=dict)
    segments: dict[str, list[Segment]] = field(default_factory=dict)
    gaps: dict[str, dict[str, Gap]] = field(default_factory=dict)
    chosen: dict[str, float] = field(default_factory=dict)
    offered: tuple[int, int] | None = None
    without: tuple[str, ...] = ()


def read_facts(folder: Path, rule: str = "") -> tuple[Facts | None, Lists | None]:
    """Reads facts and lists of `scores.npz`, whose sum and metrics `read_run` has checked.

    Returns:
        None for what is not there, as in runs of earlier versions, or does not fit together.

    Example:
        >>> read_facts(Path("nowhere"))
        (None, None)
    """
    try:
        with scores_path(folder, rule).open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files if name in _FACTS or name.startswith("group.")}
        lists = Lists(arrays["item"], arrays["score"].astype(np.float64), arrays["case_start"])
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error):
        return None, None
    fits = _is_ragged(lists.start, len(lists.item)) and len(lists.score) == len(lists.item)
    if not fits or not np.isfinite(lists.score).all():
        return None, None
    groups = {name.removeprefix("group."): names.astype(np.str_) for name, names in arrays.items() if "group." in name}
    named = ("user", "popularity", "history", "target", "feature_start", "feature")
    if not arrays.keys() >= set(named):
        return None, lists
    user, popularity, history, target, start, feature = (arrays[name] for name in named)
    blank = arrays.get("blank_score")
    known = blank is not None and blank.shape == popularity.shape and bool(np.isfinite(blank).all())
    scores = blank.astype(np.float64) if blank is not None and known else None
    facts = Facts(user.astype(np.str_), popularity, history, target, start, feature, groups, scores)
    # The lists of yes/no and rating tasks hold answers, not items.
    return (facts if _is_whole(facts) else None), lists


_FACTS = (
    "user",
    "item",
    "score",
    "case_start",
    "popularity",
    "history",
    "target",
    "feature_start",
    "feature",
    "blank_score",
)


def _is_ragged(start: Ints, length: int) -> bool:
    return (
        start.ndim == 1
        and len(start) > 0
        and start[0] == 0
        and start[-1] == length
        and bool((np.diff(start) >= 0).all())
    )


def _is_whole(facts: Facts) -> bool:
    cases, items = len(facts.user), len(facts.popularity)
    columns = (facts.history, facts.target, *facts.groups.values())
    inside = bool(((facts.target >= 0) & (facts.target < items)).all())
    ragged = _is_ragged(facts.feature_start, len(facts.feature)) and len(facts.feature_start) == items + 1
    return inside and ragged and all(column.shape == (cases,) for column in columns)


def list_metrics(lists: Lists, facts: Facts, k: int) -> dict[str, float]:
    """Coverage, Gini index, popularity, novelty and diversity of the k items each list shows.

    Example:
        >>> facts = Facts(np.array(["u"]), np.array([3, 1]), *(np.array([0]),) * 2, np.array([0, 1, 2]), np.arange(2), {})
        >>> shown = list_metrics(Lists(np.array([0, 1]), np.array([2.0, 1.0]), np.array([0, 2])), facts, 1)
        >>> shown["coverage"], shown["gini"], shown["popularity"]
        (0.5, 0.5, 0.75)
    """
    shown, items = chances(lists.score, lists.start, k), len(facts.popularity)
    return {
        "coverage": coverage(shown, lists.item, items),
        "gini": gini(np.bincount(lists.item, weights=shown.value, minlength=items).astype(np.float64)),
        "popularity": mean_of_shown(shown, lists.item, item_percentile(facts.popularity)),
        "novelty": mean_of_shown(shown, lists.item, item_novelty(facts.popularity)),
        "diversity": diversity(shown, lists.item, facts.feature_start, facts.feature),
    } | (
        {} if facts.blank is None else {"as_blank": rank_correlation(lists.score, facts.blank[lists.item], lists.start)}
    )


def beyond(table: Table) -> Beyond:
    """What a table's runs stored, as results beside accuracy.

    Example:
        >>> beyond(Table("ab", None, "ranking", 20, {}, ("hr@5",), "hr@5", {}, (), ())).cutoff
        5
    """
    results = Beyond(int(table.main.split("@")[1]) if "@" in table.main else 0)
    metric = table.main if table.task == "ranking" else table.compared
    without, offered, catalogue = [], np.empty(0, dtype=np.int64), 0
    for row in table.rows:
        measured: list[dict[str, float]] = []
        facts: Facts | None = None
        for run in row.runs:
            facts, lists = read_facts(run.folder, run.rule)
            measured.append(_measured(run, facts, lists, results.cutoff))
            if facts is not None and lists is not None and table.task == "ranking":
                offered, catalogue = np.union1d(offered, lists.item), len(facts.popularity)
                results.chosen.update(_chosen(facts))
        results.values[row.name] = _means(measured)
        if facts is None or not _aligned(row, facts, table.task):
            without.append(row.name)
        elif metric in row.values:
            ordered = _ordered(facts) if table.task != "binary" else facts
            results.segments[row.name], results.gaps[row.name] = _by_segment(row.values[metric], ordered)
    counts = (len(offered), catalogue) if catalogue else None
    return Beyond(
        results.cutoff, results.values, results.segments, results.gaps, results.chosen, counts, tuple(without)
    )


def _measured(run: Run, facts: Facts | None, lists: Lists | None, k: int) -> dict[str, float]:
    scores = run.scores
    if scores is not None and scores.probability is not None and scores.label is not None:
        return {
            "ece": calibration_error(scores.probability, scores.label),
            "brier": float(((scores.probability - scores.label) ** 2).mean()),
        }
    if run.task != "ranking" or k < 1 or facts is None or lists is None or not len(lists.item):
        return {}
    inside = bool(((lists.item >= 0) & (lists.item < len(facts.popularity))).all())
    return list_metrics(lists, facts, k) if inside else {}


def _chosen(facts: Facts) -> dict[str, float]:
    columns = {"popularity": item_percentile(facts.popularity), "novelty": item_novelty(facts.popularity)}
    return {name: float(column[facts.target].mean()) for name, column in columns.items()}


def _means(measured: Sequence[dict[str, float]]) -> dict[str, float]:
    common = [name for name in measured[0] if all(name in each for each in measured)] if measured else []
    return {name: float(np.mean([each[name] for each in measured])) for name in common}


def _aligned(row: Row, facts: Facts, task: str) -> bool:
    if task == "binary":
        return np.array_equal([case.rpartition("/")[0] for case in row.cases], facts.user)
    return np.array_equal(row.cases, np.sort(facts.user, kind="stable"))


def _ordered(facts: Facts) -> Facts:
    """Cases in the order of `Scores`: by user."""
    order = np.argsort(facts.user, kind="stable")
    groups = {name: names[order] for name, names in facts.groups.items()}
    rest = (facts.feature_start, facts.feature, groups)
    return Facts(facts.user[order], facts.popularity, facts.history[order], facts.target[order], *rest)


def _by_segment(values: Floats, facts: Facts) -> tuple[list[Segment], dict[str, Gap]]:
    parts = [("users", user_segments(facts.history)), ("items", item_segments(facts.target, facts.popularity))]
    groups = group_segments(facts.groups)
    segments = [segment for of, named in (*parts, *groups.items()) for segment in _segments(of, named.items(), values)]
    gaps = {column: group_gap(values, members) for column, members in groups.items()}
    return segments, {column: gap for column, gap in gaps.items() if gap}


def _segments(of: str, named: Iterable[tuple[str, NDArray[np.bool_]]], values: Floats) -> Iterator[Segment]:
    for name, rows in named:
        counted = values[rows & ~np.isnan(values)]
        if len(counted):
            interval = bootstrap_interval(counted) if len(counted) > 1 else None
            yield Segment(of, name, len(counted), float(counted.mean()), interval)
