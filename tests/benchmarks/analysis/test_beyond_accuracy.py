"""Metrics of what is shown, segments and groups: against every order of tied scores, other libraries and hand cases."""

from __future__ import annotations

import csv
import io
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics.pairwise import cosine_distances
from torchmetrics.functional.classification import binary_calibration_error

from benchmarks.analysis.beyond_accuracy import beyond, read_facts
from benchmarks.analysis.exposure import (
    chances,
    coverage,
    diversity,
    gini,
    item_novelty,
    item_percentile,
    mean_of_shown,
)
from benchmarks.analysis.leaderboard import build_tables
from benchmarks.analysis.reliability import calibration_error, reliability
from benchmarks.analysis.runs import read_suite
from benchmarks.analysis.segments import group_gap, group_segments, item_segments, user_segments
from benchmarks.analysis.significance import bootstrap_interval
from benchmarks.report.write import write_report
from benchmarks.runs.case_features import feature_codes
from recmodels.metrics.binary import expected_calibration_error
from tests.benchmarks.report.grids import CANDIDATES, USERS, Grid

ITEMS = 6
POPULARITY = np.array([9, 4, 4, 1, 0, 2])
FEATURES = [["a", "b"], ["a"], [], ["c", "b", "a"], ["c"], ["d"]]

Shown = tuple[list[list[int]], list[list[float]], int]


@st.composite
def lists(draw: st.DrawFn) -> Shown:
    """Lists of distinct items with scores that often tie, and a cut-off."""
    users = draw(st.integers(1, 3))
    items = [draw(st.permutations(range(ITEMS)))[: draw(st.integers(1, 4))] for _ in range(users)]
    scores = [[float(draw(st.integers(0, 2))) for _ in row] for row in items]
    return [list(row) for row in items], scores, draw(st.integers(1, 4))


def orders(items: list[int], scores: list[float]) -> list[list[int]]:
    """Every order that the scores allow, each as likely as another."""
    return [
        [items[i] for i in order]
        for order in itertools.permutations(range(len(items)))
        if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order))
    ]


def flat(case: Shown) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    items, scores, _ = case
    start = np.cumsum([0, *map(len, items)])
    return np.concatenate(items), np.concatenate(scores), start


@settings(max_examples=60, deadline=None)
@given(lists())
def test_values_are_means_over_every_order_of_equal_scores(case: Shown) -> None:
    items, scores, k = case
    item, score, start = flat(case)
    shown = chances(score, start, k)
    by_list = [[order[:k] for order in orders(i, s)] for i, s in zip(items, scores, strict=True)]
    expected = [np.mean([x in order for order in tops]) for i, tops in zip(items, by_list, strict=True) for x in i]
    assert shown.value == pytest.approx(np.array(expected))
    # Lists are independent: coverage is a mean over every combination of their orders.
    several = [len({x for top in tops for x in top}) / ITEMS for tops in itertools.product(*by_list)]
    assert coverage(shown, item, ITEMS) == pytest.approx(np.mean(several))
    novelty = item_novelty(POPULARITY)
    told = [np.mean([novelty[top].mean() for top in tops]) for tops in by_list]
    assert mean_of_shown(shown, item, novelty) == pytest.approx(np.mean(told))
    feature_start, feature = feature_codes(FEATURES, np.arange(ITEMS))
    table = np.array([[name in names for name in "abcd"] for names in FEATURES], dtype=float)
    distance = cosine_distances(table)
    np.fill_diagonal(distance, 0)
    apart = [
        np.mean([distance[np.ix_(top, top)].sum() / (len(top) * (len(top) - 1)) for top in tops])
        for tops in by_list
        if len(tops[0]) > 1
    ]
    measured = diversity(shown, item, feature_start, feature)
    assert measured == pytest.approx(np.mean(apart)) if apart else np.isnan(measured)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(any))
def test_gini_is_half_the_relative_mean_difference(exposure: list[int]) -> None:
    values = np.array(exposure, dtype=float)
    differences = np.abs(values[:, None] - values[None]).mean()
    assert gini(values) == pytest.approx(differences / (2 * values.mean()), abs=1e-12)
    assert np.isnan(gini(np.zeros(3)))


@given(st.lists(st.integers(0, 9), min_size=1, max_size=12))
def test_percentiles_count_equals_half(popularity: list[int]) -> None:
    counts = np.array(popularity)
    expected = [np.mean([(y < x) + (y == x) / 2 for y in popularity]) for x in popularity]
    assert item_percentile(counts) == pytest.approx(np.array(expected))
    assert item_percentile(counts).mean() == pytest.approx(0.5)
    assert (2.0 ** -item_novelty(counts)).sum() == pytest.approx(1)


def test_scores_that_cannot_be_ranked_are_refused() -> None:
    with pytest.raises(ValueError, match="entry 1"):
        chances(np.array([1.0, np.nan]), np.array([0, 2]), 1)
    with pytest.raises(ValueError, match="at least 1"):
        chances(np.array([1.0]), np.array([0, 1]), 0)


def test_reliability_is_that_of_two_other_libraries_and_of_training() -> None:
    generator = np.random.default_rng(3)
    probability = generator.beta(0.6, 0.8, 500)
    label = (generator.random(500) < probability**2).astype(float)
    total, confidence, positives = reliability(probability, label)
    true, predicted = calibration_curve(label, probability, n_bins=10)
    assert positives[total > 0] == pytest.approx(true)
    assert confidence[total > 0] == pytest.approx(predicted)
    p, y = torch.tensor(probability), torch.tensor(label)
    assert calibration_error(probability, label) == pytest.approx(float(expected_calibration_error(p, y)))
    # torchmetrics takes the confidence in the answer given, which for probabilities below one half is another measure.
    high = probability > 0.5
    other = binary_calibration_error(p[torch.tensor(high)], y[torch.tensor(high)].long(), n_bins=10)
    assert calibration_error(probability[high], label[high]) == pytest.approx(float(other), abs=1e-6)


def test_segments_split_equal_histories_nowhere() -> None:
    history = np.array([3, 3, 3, 8, 8, 20, 20, 20])
    found = user_segments(history)
    assert {name: history[rows].tolist() for name, rows in found.items()} == {
        "cold users (up to 3 events)": [3, 3, 3],
        "warm users (from 20 events)": [20, 20, 20],
    }
    assert user_segments(np.array([5, 5, 5])) == {}
    # Ten items: the head is the two most popular, and what is as popular as the second.
    popularity = np.array([50, 9, 9, 3, 2, 2, 1, 1, 0, 0])
    parts = item_segments(np.arange(10), popularity)
    assert {name: popularity[rows].tolist() for name, rows in parts.items()} == {
        "head items": [50, 9, 9],
        "tail items": [3, 2, 2, 1, 1],
        "unseen items": [0, 0],
    }


def test_a_gap_by_chance_is_seldom_significant_and_a_true_one_is() -> None:
    generator = np.random.default_rng(0)
    members = {name: np.arange(90) % 3 == number for number, name in enumerate("abc")}
    found = [group_gap(generator.random(90) < 0.4, members, seed) for seed in range(60)]
    assert np.mean([gap.p < 0.05 for gap in found if gap]) < 0.13
    values = np.where(members["c"], 1.0, 0.0)
    values[:3] = np.nan
    gap = group_gap(values, members)
    assert gap is not None
    assert gap.value == 1.0
    assert gap.p < 0.001
    assert group_gap(values, {"a": members["a"]}) is None


def test_groups_too_small_to_compare_are_left_out() -> None:
    names = np.array(["F"] * 6 + ["M"] * 6 + ["X"] * 2 + [""] * 9)
    assert list(group_segments({"gender": names, "all": np.full(23, "one")})["gender"]) == ["F", "M"]
    assert "all" not in group_segments({"all": np.full(23, "one")})


def add_facts(folder: Path, shift: int = 0) -> None:
    """What a test stores: the first user's list ends with items 0, 1, ...; item codes are popularity ranks."""
    with np.load(folder / "scores.npz") as stored:
        arrays = {name: stored[name] for name in stored.files}
    generator = np.random.default_rng(1)
    item = np.stack([generator.permutation(100)[:CANDIDATES] for _ in range(USERS)])
    arrays |= {
        "item": item.ravel(),
        "score": -((item.ravel() + shift) % 100).astype(float),
        "case_start": np.arange(USERS + 1) * CANDIDATES,
        "popularity": np.arange(100, 0, -1) * 3,
        "history": np.arange(USERS) % 7,
        "target": np.arange(USERS) % 100,
        "feature_start": np.arange(101),
        "feature": np.arange(100) % 9,
        "group.gender": np.where(np.arange(USERS) % 2, "F", "<b>M</b>"),
    }
    np.savez(folder / "scores.npz", allow_pickle=False, **arrays)


@pytest.fixture
def stored(grid: Grid) -> Grid:
    for name, shift in (("popular", 0), ("reversed", 50)):
        add_facts(grid.add(name), shift)
    grid.add("earlier", rank=9)  # as runs of earlier versions: no facts
    return grid


def test_sections_follow_from_the_stored_arrays_alone(stored: Grid) -> None:
    (table,) = build_tables(read_suite(stored.directory))[0]
    found = beyond(table)
    assert found.without == ("earlier",)
    assert found.values["earlier"] == {}
    assert found.offered == (100, 100)
    popular, other = found.values["popular"], found.values["reversed"]
    assert popular["popularity"] > 0.8 > other["popularity"]
    assert popular["novelty"] < other["novelty"]
    with np.load(next((stored.directory / "runs").glob("model=popular*")) / "scores.npz") as arrays:
        order = np.argsort(arrays["score"].reshape(USERS, CANDIDATES), axis=1)[:, ::-1][:, :5]
        top = np.take_along_axis(arrays["item"].reshape(USERS, CANDIDATES), order, axis=1)
        history, users = arrays["history"], arrays["user"]
    assert popular["coverage"] == pytest.approx(len(np.unique(top)) / 100)
    assert popular["gini"] == pytest.approx(gini(np.bincount(top.ravel(), minlength=100).astype(float)))
    row = next(row for row in table.rows if row.name == "popular")
    by_user = dict(zip(row.cases.tolist(), row.values["hr@5"], strict=True))
    cold = next(part for part in found.segments["popular"] if part.name.startswith("cold"))
    expected = np.array([by_user[u] for u in sorted(users[history <= 1].tolist())])
    assert (cold.cases, cold.value) == (len(expected), pytest.approx(expected.mean()))
    assert cold.interval == bootstrap_interval(expected)
    assert found.gaps["popular"].keys() == {"gender"}


def test_sections_reach_markdown_csv_and_the_page_escaped(stored: Grid) -> None:
    paths = write_report(stored.directory)
    for title in ("Beyond accuracy", "By segment", "By users' gender"):
        assert f"### {title}" in paths.text
        assert title.replace("'", "&#39;") in paths.html.read_text()
    assert "Stored too little for all of this: earlier." in paths.text
    assert "<b>M</b>" not in paths.text
    assert "<b>M</b>" not in paths.html.read_text()
    lines = list(csv.DictReader(io.StringIO(paths.beyond.read_text())))
    values = {(line["method"], line["metric"]): float(line["value"]) for line in lines if line["of"] == "all"}
    (table,) = build_tables(read_suite(stored.directory))[0]
    assert values["popular", "gini@5"] == pytest.approx(beyond(table).values["popular"]["gini"], abs=1e-9)
    assert {line["segment"] for line in lines if line["of"] == "gender"} == {"F", "<b>M</b>", "gap"}


def test_lists_of_items_that_are_none_give_no_number(stored: Grid) -> None:
    folder = next((stored.directory / "runs").glob("model=popular*"))
    with np.load(folder / "scores.npz") as arrays:
        kept = {key: arrays[key] for key in arrays.files}
    for wrong in ({"item": kept["item"] + 90}, {"score": np.full_like(kept["score"], np.nan)}):
        np.savez(folder / "scores.npz", allow_pickle=False, **(kept | wrong))
        assert beyond(build_tables(read_suite(stored.directory))[0][0]).values["popular"] == {}


@pytest.mark.parametrize("name", ["case_start", "target", "feature_start", "item", "group.gender"])
def test_facts_that_do_not_fit_together_are_not_used(stored: Grid, name: str) -> None:
    folder = next((stored.directory / "runs").glob("model=popular*"))
    with np.load(folder / "scores.npz") as arrays:
        kept = {key: arrays[key] for key in arrays.files}
    kept[name] = kept[name][:-1] if name != "target" else kept[name] + 1_000
    np.savez(folder / "scores.npz", allow_pickle=False, **kept)
    assert read_facts(folder)[0] is None
    assert "popular" in beyond(build_tables(read_suite(stored.directory))[0][0]).without


def test_yes_no_tables_have_calibration_and_a_reliability_plot(grid: Grid) -> None:
    generator = np.random.default_rng(2)
    label = (generator.random(USERS) < 0.4).astype(float)
    for name, sharp in (("lora", 0.3), ("zero_shot", 0.05)):
        probability = np.clip(0.5 + sharp * (2 * label - 1) + generator.normal(0, 0.1, USERS), 0.01, 0.99)
        loss = -np.log(np.where(label == 1, probability, 1 - probability)).mean()
        folder = grid.add(
            name,
            scores=False,
            edit=lambda r, loss=loss: (
                r.update(metrics={"test/log_loss": float(loss)}),
                r["protocol"].update(task="binary", num_candidates=2),
            ),
        )
        users = np.array([f"u{i}" for i in range(USERS)])
        np.savez(folder / "scores.npz", user=users, probability=probability, label=label, history=np.arange(USERS))
    paths = write_report(grid.directory)
    assert "| method | ECE | Brier |" in paths.text
    assert paths.figures["reliability"].path.stat().st_size > 20_000
