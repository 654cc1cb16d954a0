"""The report against fake run folders: what may stand in a table, what may not, and how it is shown."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imread

from benchmarks.analysis.leaderboard import Table, build_tables
from benchmarks.analysis.runs import GridResults, read_suite
from benchmarks.analysis.significance import bootstrap_interval, holm, paired_bootstrap
from benchmarks.metric_names import fraction, higher_is_better
from benchmarks.report.figures import pareto_front, spread_apart
from benchmarks.report.latex import render_latex
from benchmarks.report.sections import cost_section
from benchmarks.report.tables import columns, render_csv, render_markdown
from benchmarks.report.write import replace_between_markers, write_report
from datamodules.contract.errors import InputError
from datamodules.sources import fetch as sources
from tests.benchmarks.report.grids import CANDIDATES, FINGERPRINT, HOSTILE, OTHER, USERS, Edit, Grid, per_user


@pytest.fixture
def full(grid: Grid) -> Grid:
    """Eight runs: two seeds, other fingerprint, failed, unfinished."""
    grid.add("lora", 1, 3, curves=True)
    grid.add("lora", 2, 3)
    grid.add("prefix", 1, 6, parameters=92_160, curves=True, edit=lambda r: r["metrics"].pop("test/mrr"))
    grid.add("zero_shot", 1, 12, kind="untuned")
    grid.add("popularity", 1, 8, kind="reference", backbone=None, learning_rate=None)
    grid.add("adapter", 1, 1.01, edit=lambda r: r["protocol"].update(fingerprint=OTHER))
    grid.add("full", cell="full-1", edit=lambda r: r.update(status="failed", error="non-finite loss at step 3"))
    (grid.directory / "runs" / "full-1" / "run.log").write_text("...")
    (grid.directory / "runs" / "ia3-1").mkdir()
    return grid


def tables_of(grid: Grid) -> list[Table]:
    return build_tables(read_suite(grid.directory))[0]


def markdown_of(grid: Grid) -> str:
    suite = read_suite(grid.directory)
    return render_markdown(suite, *build_tables(suite), sentence="Said.")


def column(table: Table, title: str) -> dict[str, str]:
    return {row.name: cell.text for row, cell in zip(table.rows, columns(table)[title], strict=True)}


def problems_of(grid: Grid) -> dict[str, str]:
    return {p.cell: f"{p.state}: {p.reason}" for p in build_tables(read_suite(grid.directory))[1]}


def test_seeds_with_other_users_have_no_interval_and_the_table_says_so(grid: Grid) -> None:
    grid.add("lora", 1)
    grid.add("lora", 2, users=USERS - 1)
    grid.add("prefix", 1)
    grid.add("prefix", 2)
    (table,) = build_tables(read_suite(grid.directory))[0]
    assert [bool(row.intervals) for row in sorted(table.rows, key=lambda row: row.name)] == [False, True]
    (note,) = [note for note in table.notes if "No interval" in note]
    assert note == "No interval and no test, because the seeds' runs name other cases: lora."


def test_unequal_fingerprints_share_no_table(full: Grid) -> None:
    first, second = tables_of(full)
    assert [row.name for row in second.rows] == ["adapter"]
    assert {row.name for row in first.rows} == {"lora", "prefix", "zero_shot", "popularity"}
    text = markdown_of(full)
    blocks = re.split(r"^## ", text, flags=re.MULTILINE)
    assert not [b for b in blocks if "| adapter |" in b and "| lora |" in b]
    folded = re.findall(r"(?s)<details><summary>Protocol of (.*?)</summary>(.*?)</details>", text)
    assert [title for title, _ in folded] == [first.title, second.title]
    assert text.index("<details>") > text.rindex("| --- |"), "the tables come first"
    for _, block in folded:
        assert "leave-one-out by time" in block
        assert "uniform, 1 + 19, seed 42" in block
        assert "- HR@5: 1 if any relevant item has rank at most k" in block
    latex = render_latex([first, second])
    assert latex.count(r"\begin{table}") == latex.count(r"\end{table}") == 4  # each with its costs
    assert r"zero\_shot" in latex


def test_rows_are_sorted_by_the_main_metric(full: Grid) -> None:
    table = tables_of(full)[0]
    shown = [row.metrics["hr@5"] for row in table.rows]
    assert table.main == "hr@5"
    assert shown == sorted(shown, reverse=True)
    assert [row.name for row in table.rows][:2] == ["lora", "prefix"]


def test_two_seeds_are_one_row_with_their_mean_and_interval(full: Grid) -> None:
    table = tables_of(full)[0]
    first, second = (per_user(f"lora{seed}", 3, USERS)["hr@5"] for seed in (1, 2))
    users = np.array([f"u{i}" for i in range(USERS)])
    averaged = ((first + second) / 2)[np.argsort(users, kind="stable")]
    low, high = bootstrap_interval(averaged)
    expected = f"{fraction(averaged.mean())} [{fraction(low)}, {fraction(high)}]"
    assert column(table, "HR@5 [95 %]")["lora"] == expected
    spread = np.std([first.mean(), second.mean()], ddof=1)
    assert column(table, "seeds")["lora"] == f"2 (±{fraction(spread)})"
    assert column(table, "seeds")["prefix"] == "1"
    assert column(table, "users")["lora"] == str(USERS)


def test_difference_to_zero_shot_is_paired_and_corrected(full: Grid) -> None:
    table = tables_of(full)[0]
    rows = {row.name: row for row in table.rows}
    pairs = {n: paired_bootstrap(rows[n].values["hr@5"], rows["zero_shot"].values["hr@5"]) for n in ("lora", "prefix")}
    corrected = dict(zip(pairs, holm([pair.p_value for pair in pairs.values()]), strict=True))
    for name, pair in pairs.items():
        found = rows[name].difference
        assert found is not None
        assert (found.base, found.value, found.low, found.high) == (
            "zero_shot",
            pair.difference,
            pair.low,
            pair.high,
        )
        assert found.p == corrected[name]
    assert rows["lora"].difference is not None
    assert rows["lora"].difference.value == pytest.approx(
        rows["lora"].metrics["hr@5"] - rows["zero_shot"].metrics["hr@5"]
    )
    shown = column(table, "Δ HR@5 to zero-shot")
    assert shown["lora"].startswith("+.")
    assert shown["popularity"] == shown["zero_shot"] == "–"


def test_no_difference_across_backbones_or_users(grid: Grid) -> None:
    grid.add("lora", rank=3)
    grid.add("other", backbone="qwen")
    grid.add("fewer", users=150)
    grid.add("zero_shot", rank=12, kind="untuned")
    table = tables_of(grid)[0]
    shown = column(table, "Δ HR@5 to zero-shot")
    assert shown["lora"] != "–"
    assert shown["other"] == shown["fewer"] == "–"
    assert any("fewer" in note and "users" in note for note in table.notes)


def test_missing_stays_missing(grid: Grid) -> None:
    grid.add("lora", rank=3, edit=lambda r: (r["metrics"].update({"test/mrr": None}), r["costs"].clear()))
    grid.add(
        "bare",
        scores=False,
        edit=lambda r: [r.pop(k) for k in ("metrics", "costs", "kind", "config", "samples")],
    )
    table = tables_of(grid)[0]
    assert [row.name for row in table.rows] == ["lora", "bare"]
    cells = columns(table)
    bare = {title: column[1].text for title, column in cells.items()}
    assert {title for title, text in bare.items() if text != "–"} == {"method", "seeds"}
    assert column(table, "MRR")["lora"] == "–"
    assert column(table, "trainable")["lora"] == "–"
    line = list(csv.DictReader(io.StringIO(render_csv([table]))))[1]
    assert line["hr@5"] == ""
    assert "mrr" not in line


def test_a_metric_that_one_seed_lacks_is_no_mean_of_the_others(grid: Grid) -> None:
    grid.add("lora", 1)
    grid.add("lora", 2, edit=lambda r: r["metrics"].pop("test/ndcg@5"))
    assert column(tables_of(grid)[0], "NDCG@5") == {"lora": "–"}


def test_a_true_zero_is_a_zero(grid: Grid) -> None:
    grid.add("popularity", kind="reference", edit=lambda r: r["costs"].update(trainable_parameters=0))
    assert column(tables_of(grid)[0], "trainable") == {"popularity": "0"}


def test_failed_and_unfinished_runs_are_named_below(full: Grid) -> None:
    text = markdown_of(full)
    below = text.split("## Not in the tables, and why")[1]
    assert "`full-1`: failed, non-finite loss at step 3 (log: `runs/full-1/run.log`)" in below
    assert "`ia3-1`: unfinished, no record.json yet" in below
    assert "| full |" not in text


def test_an_interrupted_run_is_unfinished_and_says_how_it_goes_on(grid: Grid) -> None:
    grid.add("lora", 1, 3)
    again = "interrupted by SIGTERM; saved at step 7; the same command with --ckpt_path last continues"
    grid.add("full", cell="full-1", edit=lambda r: r.update(status="interrupted", error=again))
    below = markdown_of(grid).split("## Not in the tables, and why")[1]
    assert f"`full-1`: unfinished, {again}" in below
    assert column(tables_of(grid)[0], "trainable").keys() == {"lora"}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda r: r.update(format=2), "format is 2, this version reads 1"),
        (lambda r: r.pop("format"), "format is None"),
        (lambda r: r.update(status="done"), "status is 'done', must be 'finished' or 'failed'"),
        (
            lambda r: r["metrics"].update({"test/hr@5": "0.9"}),
            "metrics['test/hr@5'] is '0.9', must be a finite number",
        ),
        (lambda r: r["metrics"].update({"test/hr@5": True}), "metrics['test/hr@5'] is True"),
        (lambda r: r["metrics"].update({"test/hr@5": math.nan}), "metrics['test/hr@5'] is nan"),
        (lambda r: r["metrics"].update({"test/hr@5": 41.2}), "must lie between 0 and 1"),
        (lambda r: r["metrics"].update({"test/hr@5": 0.9876}), "says test/hr@5 = 0.9876, scores.npz gives"),
        (lambda r: r.update(metrics=[1]), "metrics is [1], must be a mapping"),
        (lambda r: r.update(seed="one"), "seed is 'one', must be a whole number"),
        (lambda r: r.update(kind="best"), "kind is 'best', must be one of reference, tuned, untuned"),
        (lambda r: r.update(name=["lora"]), "name is ['lora'], must be text"),
        (lambda r: r.update(samples=["text"]), "samples must be a list of mappings"),
        (lambda r: r["costs"].update(train_seconds=-1), "costs['train_seconds'] is -1, must not be negative"),
        (lambda r: r["protocol"].pop("fingerprint"), "protocol.fingerprint is missing"),
        (lambda r: r.update(scores_sha256="0" * 64), "sha256 differs"),
    ],
)
def test_hand_edited_records_are_problems_not_rows(grid: Grid, edit: Edit, message: str) -> None:
    grid.add("lora", cell="broken", edit=edit)
    grid.add("prefix")
    assert [row.name for row in tables_of(grid)[0].rows] == ["prefix"]
    assert message in problems_of(grid)["broken"]
    assert message.split(",")[0] in markdown_of(grid).replace("&lt;", "<")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe{}", b'{"format": 1}', b"[" * 100_000])
def test_damaged_record_files_are_problems(grid: Grid, content: bytes) -> None:
    grid.add("lora", cell="broken").joinpath("record.json").write_bytes(content)
    assert problems_of(grid)["broken"].startswith("unreadable: record.json")


@pytest.mark.parametrize("damage", ["truncated", "not_zip", "short", "pickle", "table"])
def test_damaged_scores_are_problems(grid: Grid, damage: str) -> None:
    path = grid.add("lora", cell="broken") / "scores.npz"
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-200])
    elif damage == "not_zip":
        path.write_bytes(b"user,hr@5")
    else:
        values = {"short": np.ones(3), "pickle": np.array([1, None], dtype=object), "table": np.ones((2, 2))}[damage]
        np.savez(path, allow_pickle=True, **{"user": np.array(["a", "b"]), "hr@5": values})
    assert problems_of(grid)["broken"].startswith("unreadable: scores.npz")


def test_broken_curves_cost_no_row_its_place(grid: Grid) -> None:
    path = grid.add("lora", cell="kept", curves=True) / "metrics.csv"
    path.write_text(re.sub(r"(?m)^(\d+),.*$", r"\1,high,high", path.read_text()))
    assert [row.name for row in tables_of(grid)[0].rows] == ["lora"]
    assert "metrics.csv is unreadable" in problems_of(grid)["kept"]


def test_a_repeated_run_is_counted_once(grid: Grid) -> None:
    grid.add("lora", 1, cell="a")
    grid.add("lora", 1, cell="b")
    assert len(tables_of(grid)[0].rows[0].runs) == 1
    assert "same name, settings and seed as a" in problems_of(grid)["b"]


def test_one_name_with_two_settings_is_two_rows(grid: Grid) -> None:
    for rank in (4, 8):
        for seed in (1, 2):
            grid.add("lora", seed, cell=f"model=lora,rank={rank},seed_everything={seed}-{rank}{seed}abcdef")
    rows = tables_of(grid)[0].rows
    assert {(row.name, len(row.runs)) for row in rows} == {("lora (rank=4)", 2), ("lora (rank=8)", 2)}


def test_runs_of_an_earlier_version_of_the_suite_are_not_counted(grid: Grid) -> None:
    grid.add("lora", 1, cell="lora-1-0123abcd")
    grid.add("lora", 1, cell="lora-1-ffffffff")
    cells = [
        {"name": n, "labels": {"model": "lora", "seed_everything": 1}} for n in ("lora-1-ffffffff", "lora-2-eeeeeeee")
    ]
    (grid.directory / "cells.json").write_text(json.dumps({"format": 1, "cells": cells}))
    (table,) = tables_of(grid)
    assert [run.cell for row in table.rows for run in row.runs] == ["lora-1-ffffffff"]
    assert problems_of(grid)["lora-1-0123abcd"] == "note: of an earlier version of this suite, not counted"
    assert problems_of(grid)["lora-2-eeeeeeee"] == "unfinished: not started"


def test_a_run_without_users_has_no_interval_and_no_difference(grid: Grid) -> None:
    for name, kind in (("lora", "tuned"), ("zero_shot", "untuned")):
        path = grid.add(name, kind=kind) / "scores.npz"
        np.savez(path, allow_pickle=False, **{"user": np.array([], dtype="U1"), "hr@5": np.array([])})
    (table,) = tables_of(grid)
    assert all("[" not in text for text in column(table, "HR@5 [95 %]").values())
    assert any("no stored values" in note for note in table.notes)


def test_users_with_several_cases_are_counted_once_and_noted(grid: Grid) -> None:
    folder = grid.add("lora")
    with np.load(folder / "scores.npz") as stored:
        arrays = {name: stored[name] for name in stored.files}
    arrays["user"] = np.array([f"u{i // 2}" for i in range(USERS)])
    np.savez(folder / "scores.npz", allow_pickle=False, **arrays)
    (table,) = tables_of(grid)
    assert column(table, "users") == {"lora": str(USERS // 2)}
    assert any("several cases" in note for note in table.notes)


def test_best_needs_seeds_a_search_and_significance(grid: Grid) -> None:
    for seed in (1, 2):
        grid.add("lora", seed, 2, search=True)
    grid.add("zero_shot", 1, 12, kind="untuned")
    assert [row.best for row in tables_of(grid)[0].rows] == [True, False]
    assert "lora (best)" in markdown_of(grid)


@pytest.mark.parametrize(
    ("seeds", "search", "rank", "reason"),
    [
        ((1,), True, 2.0, "one seed"),
        ((1, 2), False, 2.0, "no learning-rate search is recorded for lora"),
        ((1, 2), True, 12.0, "not significantly better"),
    ],
)
def test_no_best_mark_without_a_reason(
    grid: Grid, seeds: tuple[int, ...], search: bool, rank: float, reason: str
) -> None:
    for seed in seeds:
        grid.add("lora", seed, rank, search=search)
    grid.add("zero_shot", 1, 12, kind="untuned")
    (table,) = tables_of(grid)
    assert not any(row.best for row in table.rows)
    assert reason in table.notes[0]
    assert table.notes[0].startswith("No row is marked best")


def searched(trials: int, **chosen: str) -> Edit:
    return lambda record: record.update(search={"trials": trials, "chosen": chosen, "metric": "val/quality"})


def test_the_table_prints_the_trials_and_what_they_chose(grid: Grid) -> None:
    for seed in (1, 2):
        grid.add("lora", seed, 2, edit=searched(6, **{"model.optimizer.lr": "0.0012"}))
    grid.add("zero_shot", 1, 12, kind="untuned")
    grid.add("popularity", 1, 9, kind="reference", backbone=None, learning_rate=None)
    (table,) = tables_of(grid)
    told = {"lora": "6 trials: optimizer.lr 0.0012", "zero_shot": "–", "popularity": "–"}
    assert any(note.endswith("by val/quality): lora 6 trials (0 pruned, 0 failed).") for note in table.notes)
    assert column(table, "search") == told
    rows = {row["method"]: row for row in csv.DictReader(io.StringIO(render_csv([table])))}
    assert rows["lora"]["search_trials"] == "6"


def test_methods_are_not_compared_over_unequal_searches(grid: Grid) -> None:
    for seed in (1, 2):
        grid.add("lora", seed, 2, edit=searched(6))
        grid.add("full", seed, 12, edit=searched(4))
    (table,) = tables_of(grid)
    assert "unequal numbers of trials were searched: full 4, lora 6" in table.notes[0]
    assert not table.rows[0].best


@pytest.mark.parametrize("trials", [None, 6])
def test_a_baseline_whose_options_nobody_searched_takes_the_mark_away(grid: Grid, trials: int | None) -> None:
    for seed in (1, 2):
        grid.add("lora", seed, 2, edit=searched(6))
    closed = {"kind": "reference", "backbone": None, "learning_rate": None}

    def edit(record: dict[str, Any]) -> None:
        record["model"]["class"] = "ItemKNN"
        if trials:
            searched(trials)(record)

    grid.add("item_knn", 1, 12, edit=edit, **closed)  # type: ignore[arg-type]
    (table,) = tables_of(grid)
    assert table.rows[0].best == (trials is not None)
    assert column(table, "search")[table.rows[1].name] == ("none" if trials is None else "6 trials")
    if trials is None:
        assert "untuned baselines, no search is recorded for item_knn" in table.notes[0]


def test_costs_have_a_table_of_their_own_in_every_form(grid: Grid) -> None:
    def measured(record: dict[str, Any]) -> None:
        record["costs"] |= {
            "best_validation_seconds": 41.2,
            "optimizer_state_bytes": 3_686_400,
            "train_flops": 2.5e14,
            "train_tokens_per_second": 1234.5,
            "latency_seconds": 0.21,
            "merged_latency_seconds": 0.18,
            "checkpoint_bytes": 1_900_000,
            "perplexity_before": 20.0,
            "perplexity_after": 22.0,
        }

    grid.add("lora", edit=measured)
    grid.add("zero_shot", 1, 12, kind="untuned")
    (table,) = tables_of(grid)
    section = cost_section(table)
    assert section is not None
    told = {title: cells[0].text for title, cells in section.columns.items()}
    assert told == {
        "method": "lora",
        "train time": "69 s",
        "to best validation": "41 s",
        "training FLOPs": "250.0 T",
        "tokens/s": "1,234.5/s",
        "peak memory": "1.2 GiB",
        "optimizer state": "3.5 MiB",
        "checkpoint": "1.8 MiB",
        "latency": "0.21 s",
        "latency, merged": "0.18 s",
        "perplexity": "20 → 22 (+10.0%)",
    }
    assert section.columns["train time"][1].text == "–"
    assert not {"train time", "peak memory"} & set(columns(table))
    paths = write_report(grid.directory)
    assert "| lora | 69 s | 41 s | 250.0 T |" in paths.text
    assert "Costs" in paths.html.read_text()
    assert r"20 $\to$ 22 (+10.0\%)" in paths.latex.read_text()
    rows = {row["method"]: row for row in csv.DictReader(io.StringIO(paths.csv.read_text()))}
    assert rows["lora"]["merged_latency_seconds"] == "0.18"


def test_costs_that_nobody_recorded_have_no_column(grid: Grid) -> None:
    grid.add("lora", edit=lambda record: record.update(costs={}))
    assert cost_section(tables_of(grid)[0]) is None


def rated(rmse: float) -> Edit:
    def edit(record: dict[str, Any]) -> None:
        record["protocol"]["task"] = "rating"
        record["metrics"] = {"test/rmse": rmse, "test/mae": rmse - 0.1}

    return edit


def test_the_smallest_error_comes_first_and_on_the_front(grid: Grid) -> None:
    for name, rmse, parameters in (("lora", 0.8, 500_000.0), ("full", 0.9, 900_000.0), ("prefix", 0.95, 100_000.0)):
        grid.add(name, edit=rated(rmse), scores=False, parameters=parameters)
    (table,) = tables_of(grid)
    assert [row.name for row in table.rows] == ["lora", "full", "prefix"]
    points = [(row.costs["trainable_parameters"], row.metrics["rmse"]) for row in table.rows]
    assert pareto_front(points, higher_is_better(table.main)) == [(100_000.0, 0.95), (500_000.0, 0.8)]
    assert pareto_front(points) == [(100_000.0, 0.95)]  # what it would be if more error were better


@pytest.mark.parametrize(("first", "second", "better"), [(2.0, 12.0, True), (12.0, 2.0, False)])
def test_the_mark_follows_the_direction_of_the_metric(
    grid: Grid, monkeypatch: pytest.MonkeyPatch, first: float, second: float, better: bool
) -> None:
    """A per-user metric of which less is better does not exist in a table yet: HR@5 is declared one."""
    monkeypatch.setattr("benchmarks.analysis.leaderboard.higher_is_better", lambda _: False)
    for seed in (1, 2):
        grid.add("lora", seed, first, edit=searched(6))
        grid.add("full", seed, second, edit=searched(6))
    (table,) = tables_of(grid)
    assert table.rows[0].name == ("full" if better else "lora")  # the smaller value
    assert table.rows[0].best


def test_chance_is_the_mean_over_all_ranks(grid: Grid) -> None:
    grid.add("lora")
    (table,) = tables_of(grid)
    ranks = range(1, CANDIDATES + 1)
    assert table.chance["hr@5"] == pytest.approx(5 / CANDIDATES, abs=1e-12)
    assert table.chance["mrr"] == pytest.approx(sum(1 / r for r in ranks) / CANDIDATES, abs=1e-12)
    ndcg = sum(1 / math.log2(r + 1) for r in ranks if r <= 5) / CANDIDATES
    assert table.chance["ndcg@5"] == pytest.approx(ndcg, abs=1e-12)
    assert "- chance: HR@5 .2500, NDCG@5 .1474, MRR .1799 (one relevant item among 20)" in markdown_of(grid)


def test_a_cutoff_as_large_as_the_list_is_warned_of(grid: Grid) -> None:
    grid.add("lora", edit=lambda r: r["protocol"].update(num_candidates=5))
    (table,) = tables_of(grid)
    assert any("1 by construction" in note for note in table.notes)
    assert table.chance["hr@5"] == 1.0


def test_binary_task_shows_auc_and_log_loss(grid: Grid) -> None:
    label = np.tile([0.0, 1.0, 1.0], 40)
    user = np.array([f"u{i // 3}" for i in range(120)])
    for name, kind, sharpness in (("lora", "tuned", 2.0), ("zero_shot", "untuned", 0.2)):
        noise = np.random.default_rng(5).normal(size=120)
        probability = 1 / (1 + np.exp(-(sharpness * (2 * label - 1) + noise)))
        wins = (probability[label == 1][:, None] > probability[label == 0][None]).mean()
        right = np.where(label == 1, probability, 1 - probability)
        metrics = {"test/auc": float(wins), "test/log_loss": float(-np.log(right).mean())}
        folder = grid.add(
            name,
            kind=kind,
            scores=False,
            edit=lambda r, m=metrics: (
                r.update(metrics=m),
                r["protocol"].update(task="binary", num_candidates=None),
            ),
        )
        np.savez(folder / "scores.npz", user=user, probability=probability, label=label)
    (table,) = tables_of(grid)
    assert [row.name for row in table.rows] == ["lora", "zero_shot"]
    assert {"AUC [95 %]", "log-loss", "Δ log-loss to zero-shot"} <= columns(table).keys()
    difference = table.rows[0].difference
    assert difference is not None
    assert difference.value == pytest.approx(table.rows[0].metrics["log_loss"] - table.rows[1].metrics["log_loss"])
    assert column(table, "users") == {"lora": "40", "zero_shot": "40"}
    assert table.chance == {"auc": 0.5}
    record = json.loads((folder / "record.json").read_text())
    record["metrics"]["test/auc"] = 0.99
    (folder / "record.json").write_text(json.dumps(record))
    assert "test/auc = 0.9900" in next(iter(problems_of(grid).values()))


class _Tags(HTMLParser):
    """Open tags that must be closed, all tags, and addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        if tag not in ("meta", "input", "img", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_html_is_escaped_well_formed_and_self_contained(full: Grid) -> None:
    page = write_report(full.directory).html.read_text(encoding="utf-8")
    parser = _Tags()
    parser.feed(page)
    assert parser.open == []
    assert parser.tags.count("script") == 2  # the page's, and the configs as data
    assert HOSTILE not in page
    assert "&lt;script&gt;alert(" in page
    assert parser.tags.count("img") == 0
    assert parser.tags.count("figure") == 2
    assert all(re.match(r"data:text/plain;|runs/[^/]*/$|#run-[0-9a-f]{8}-0$", address) for address in parser.addresses)
    assert "@import" not in page
    assert set(re.findall(r"url\([^)]*\)", page)) == set(re.findall(r"url\(#p[0-9a-f]{10}\)", page))  # clips of figures
    for shown in (
        "two ways of tuning",
        "max_steps: 100",
        "parameters moved",
        "non-finite loss at step 3",
        "460.8 K",
    ):
        assert shown in page, shown


def test_html_and_markdown_of_hostile_names(grid: Grid) -> None:
    (grid.directory / "suite.yaml").write_text(f"name: '{HOSTILE}'\n")
    grid.add(f"lo|ra {HOSTILE}\n# x", cell="odd", edit=lambda r: r["protocol"]["description"].update(split=HOSTILE))
    paths = write_report(grid.directory)
    assert "<script>alert" not in paths.html.read_text()
    assert "<script>" not in paths.text
    assert r"lo\|ra" in paths.text
    assert not re.search(r"^# x", paths.text, flags=re.MULTILINE)


def test_output_is_deterministic(full: Grid) -> None:
    names = ("leaderboard.md", "leaderboard.csv", "leaderboard.tex", "report.html")
    write_report(full.directory)
    first = [(full.directory / name).read_bytes() for name in names]
    write_report(full.directory)
    assert [(full.directory / name).read_bytes() for name in names] == first


def test_csv_carries_every_metric_at_full_precision(full: Grid) -> None:
    lines = list(csv.DictReader(io.StringIO(render_csv(tables_of(full)))))
    lora = next(line for line in lines if line["method"] == "lora")
    assert float(lora["hr@10"]) == pytest.approx(
        np.mean([per_user(f"lora{seed}", 3, USERS)["hr@10"].mean() for seed in (1, 2)]), abs=1e-9
    )
    assert float(lora["hr@5_low"]) < float(lora["hr@5"]) < float(lora["hr@5_high"])
    assert {line["fingerprint"] for line in lines} == {FINGERPRINT, OTHER}
    assert next(line for line in lines if line["method"] == "prefix")["mrr"] == ""


def test_figures_are_drawn_and_not_blank(full: Grid) -> None:
    paths = write_report(full.directory)
    assert paths.figures.keys() == {"quality_cost", "learning_curves"}
    for picture in paths.figures.values():
        pixels = imread(picture.path)[..., :3]
        assert pixels.shape[0] > 500
        assert pixels.shape[1] > 1000
        # Both halves hold ink: neither panel is empty.
        for half in np.array_split(pixels, 2, axis=1):
            assert half.std() > 0.03
            assert len(np.unique((half[::3, ::3] * 8).astype(int).reshape(-1, 3), axis=0)) > 8


def test_a_folder_without_finished_runs_still_reports(grid: Grid) -> None:
    (grid.directory / "runs" / "lora-1").mkdir()
    paths = write_report(grid.directory)
    assert not paths.figures
    assert "**No run has finished: nothing can be said yet.**" in paths.text
    assert "lora-1" in paths.html.read_text()


def test_a_folder_that_is_no_grid_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no folder runs/"):
        write_report(tmp_path)


def test_a_broken_suite_file_names_its_line(grid: Grid) -> None:
    (grid.directory / "suite.yaml").write_text("name: tiny\naxes: [\n")
    with pytest.raises(InputError, match=r"suite\.yaml:\d+: not readable as YAML"):
        read_suite(grid.directory)


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("none", "0 times"),
        ("<!-- t:begin -->", "'<!-- t:end -->' 0 times"),
        ("<!-- t:end --><!-- t:begin -->", "stands before"),
        ("<!-- t:begin --><!-- t:begin --><!-- t:end -->", "2 times"),
    ],
)
def test_markers_must_be_there_once_and_in_order(tmp_path: Path, page: str, message: str) -> None:
    path = tmp_path / "README.md"
    path.write_text(page)
    with pytest.raises(InputError, match=re.escape(message)):
        replace_between_markers(path, "t", "new")
    assert path.read_text() == page


def test_replacing_twice_equals_replacing_once(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text("above\n<!-- t:begin -->\nold\n<!-- t:end -->\nbelow\n")
    replace_between_markers(path, "t", "| a \\1 |\n")
    once = path.read_text()
    replace_between_markers(path, "t", "| a \\1 |\n")
    assert path.read_text() == once == "above\n<!-- t:begin -->\n| a \\1 |\n<!-- t:end -->\nbelow\n"
    with pytest.raises(InputError, match="does not exist"):
        replace_between_markers(tmp_path / "absent.md", "t", "new")


def test_importing_the_report_loads_no_network_library() -> None:
    code = (
        # The package's own __init__ exports LightningDataModules; what the report needs is tested.
        "import sys, types; package = types.ModuleType('datamodules'); "
        f"package.__path__ = [{str(Path(sources.__file__).parents[1])!r}]; sys.modules['datamodules'] = package; "
        "import benchmarks.report.figures, benchmarks.report.html; "
        "print([m for m in ('torch', 'lightning', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_spread_labels_keep_their_order_and_a_gap(heights: list[float]) -> None:
    moved = spread_apart(heights, 0.05)
    ordered = [moved[i] for i in sorted(range(len(heights)), key=lambda i: (heights[i], i))]
    assert all(b - a >= 0.05 - 1e-9 for a, b in itertools.pairwise(ordered))
    assert np.mean(moved) == pytest.approx(np.mean(heights))


@given(st.lists(st.tuples(st.floats(1, 9), st.floats(0, 1)), min_size=1, max_size=12))
def test_pareto_front_is_what_nothing_beats(points: list[tuple[float, float]]) -> None:
    beaten = {p for p in points for q in points if q != p and q[0] <= p[0] and q[1] >= p[1]}
    assert set(pareto_front(points)) == set(points) - beaten


@given(st.floats(-1, 1))
def test_fractions_read_back(value: float) -> None:
    assert float(fraction(value)) == pytest.approx(value, abs=5.1e-5)
    assert not re.match(r"[+-]?0\.", fraction(value))


def test_an_empty_suite_has_no_tables() -> None:
    assert build_tables(GridResults("empty", "", (), ())) == ([], [])
