"""Ensembles of finished runs, against ranks and probabilities of each list by scipy, and in the report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import rankdata

from benchmarks.__main__ import main
from benchmarks.analysis.leaderboard import build_tables
from benchmarks.analysis.runs import read_suite
from benchmarks.report.write import write_report
from tests.benchmarks.cli.refusals import refusal

WARNINGS = ("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
pytestmark = [pytest.mark.filterwarnings(rule) for rule in WARNINGS]
ROWS = ("lora", "zero_shot", "popularity")


def runs_of(grid: Path, *rows: str) -> list[str]:
    return [str(grid / "runs" / f"model={row}-1") for row in rows or ROWS]


def arrays_of(run: str | Path) -> dict[str, Any]:
    with np.load(Path(run) / "scores.npz", allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def lists_of(arrays: dict[str, Any]) -> list[slice]:
    return [slice(*ends) for ends in zip(arrays["case_start"][:-1], arrays["case_start"][1:], strict=True)]


PARTS: dict[str, Any] = {"scores": lambda score: score, "ranks": rankdata, "probabilities": softmax}


def reciprocal_rank(value: Any, right: Any) -> float:
    """Expected over equal values in random order, of one right answer."""
    wanted = value[right][0]
    above, equal = int((value > wanted).sum()), int((value == wanted).sum())
    return float(np.mean([1 / (above + place) for place in range(1, equal + 1)]))


@pytest.mark.parametrize("by", PARTS)
def test_lists_are_put_together_and_each_run_is_left_out_once(tiny_grid: Path, tmp_path: Path, by: str) -> None:
    runs, out = runs_of(tiny_grid), tmp_path / "ensemble"
    assert main(["ensemble", *runs, "--out", str(out), "--by", by]) == 0
    members, made = [arrays_of(run) for run in runs], arrays_of(out)
    record = json.loads((out / "record.json").read_text())

    def together(chosen: list[dict[str, Any]], part: slice) -> Any:
        return np.mean([PARTS[by](one["score"][part].astype(float)) for one in chosen], axis=0)

    for part in lists_of(made):
        mine, expected = made["score"][part].astype(float), together(members, part)
        if by == "probabilities":
            np.testing.assert_allclose(softmax(mine), expected, rtol=1e-5, atol=1e-9)
        else:
            np.testing.assert_allclose(mine - mine.mean(), expected - expected.mean(), rtol=1e-5, atol=1e-5)
    means = []
    for chosen in (members, *([one for one in members if one is not left] for left in members)):
        lists = lists_of(made)
        ranks = [reciprocal_rank(np.float32(together(chosen, part)), made["relevance"][part] > 0) for part in lists]
        means.append(np.mean(ranks))
    assert record["metrics"]["test/mrr"] == pytest.approx(means[0], abs=1e-6)
    assert made["mrr"].mean() == pytest.approx(means[0], abs=1e-6)
    told = record["config"]["ensemble"]
    assert told["by"] == by
    assert [each["name"] for each in told["members"]] == list(ROWS)
    for each, run in zip(told["members"], runs, strict=True):
        others = [other for other in runs if other != run]
        assert main(["ensemble", *others, "--out", str(tmp_path / each["name"]), "--by", by]) == 0
        without = json.loads((tmp_path / each["name"] / "record.json").read_text())["metrics"]["test/quality"]
        assert each["gain"] == pytest.approx(record["metrics"]["test/quality"] - without, abs=1e-9)
        assert 0 <= each["p"] <= 1


def test_an_ensemble_is_a_row_of_the_report(
    tiny_grid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = tmp_path / "grid"
    shutil.copytree(tiny_grid, grid)
    words = ["ensemble", *runs_of(grid, "lora", "zero_shot"), "--out", str(grid / "runs/ensemble"), "--name", "both"]
    assert main(words) == 0
    said = capsys.readouterr().out.splitlines()
    assert "2 runs, mean of ranks, quality " in said[0]
    assert said[1].startswith("model=lora-1: alone ")
    (table,) = build_tables(read_suite(grid))[0]
    row = next(row for row in table.rows if row.name == "both")
    assert row.kind == "tuned"
    assert row.difference is not None
    assert row.difference.base == "zero_shot"
    (note,) = [note for note in table.notes if note.startswith("both is the mean of ranks of these runs")]
    assert "model=lora-1 " in note
    costs = [json.loads((Path(run) / "record.json").read_text())["costs"] for run in runs_of(grid, "lora", "zero_shot")]
    assert row.costs["latency_seconds"] == pytest.approx(sum(cost["latency_seconds"] for cost in costs))
    write_report(grid)
    assert "both" in (grid / "report.html").read_text()


@pytest.mark.parametrize("task", ["like", "rating"])
def test_yes_no_and_ratings_are_means_of_probabilities(
    mini_data: Path, tiny_causal: Path, tmp_path: Path, task: str
) -> None:
    runs = [str(tmp_path / rule) for rule in ("sum", "mean")]
    for run in runs:
        words = ["--model=ZeroShot", f"--model.backbone={tiny_causal}", "--data=MovieLens100K", f"--data.task={task}"]
        rule = f"--model.scoring={Path(run).name}"
        assert main(["fit", *words, rule, "--trainer.logger=false", f"--out={run}"]) == 0
    assert main(["ensemble", *runs, "--out", str(tmp_path / "both")]) == 0
    members, made = [arrays_of(run) for run in runs], arrays_of(tmp_path / "both")
    for part in lists_of(made):
        expected = np.mean([softmax(one["score"][part].astype(float)) for one in members], axis=0)
        np.testing.assert_allclose(softmax(made["score"][part].astype(float)), expected, rtol=1e-5)
    record = json.loads((tmp_path / "both" / "record.json").read_text())
    if task == "like":
        expected = np.mean([one["probability"] for one in members], axis=0)
        np.testing.assert_allclose(made["probability"], expected, rtol=1e-5)
        right = np.where(made["label"] == 1, expected, 1 - expected)
        assert record["metrics"]["test/log_loss"] == pytest.approx(-np.log(right).mean(), rel=1e-5)
    else:
        assert record["metrics"]["test/rmse"] == pytest.approx(made["mse"].mean() ** 0.5, rel=1e-6)
        assert record["metrics"]["test/quality"] == -record["metrics"]["test/rmse"]


def test_further_rules_are_put_together_too(mini_data: Path, tiny_causal: Path, tmp_path: Path) -> None:
    runs = [str(tmp_path / name) for name in ("zero", "popular")]
    for run, model in zip(runs, ("ZeroShot", "Popularity"), strict=True):
        words = [f"--model={model}", "--data=MovieLens100K", "--data.protocol.negatives=6", f"--out={run}"]
        words += ["--data.protocol.also=[popularity]", "--trainer.logger=false"]
        words += [f"--model.backbone={tiny_causal}"] if model == "ZeroShot" else []
        assert main(["fit", *words]) == 0
    out = tmp_path / "grid/runs/both"
    assert main(["ensemble", *runs, "--out", str(out)]) == 0
    tables, problems = build_tables(read_suite(tmp_path / "grid"))
    assert not problems
    assert sorted(run.rule for table in tables for row in table.rows for run in row.runs) == ["", "popularity"]


def test_runs_that_are_no_ensemble_are_refused_in_one_line(
    tiny_grid: Path, mini_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, other = runs_of(tiny_grid, "lora", "popularity")
    for name in ("edited", "best", "lists"):
        shutil.copytree(other, tmp_path / name)
    record = json.loads((tmp_path / "edited/record.json").read_text())
    record["protocol"]["fingerprint"] = "f" * 64
    (tmp_path / "edited/record.json").write_text(json.dumps(record))
    for name, column in (("best", "candidates"), ("lists", "item")):
        arrays = arrays_of(other)
        arrays[column] = arrays[column] + 1
        np.savez(tmp_path / name / "scores.npz", **arrays)
        record = json.loads((tmp_path / name / "record.json").read_text()) | {"scores_sha256": None}
        (tmp_path / name / "record.json").write_text(json.dumps(record))
    (tmp_path / "empty").mkdir()
    cases = {
        (good,): "an ensemble is of two or more different runs",
        (good, good): "an ensemble is of two or more different runs",
        (good, str(tmp_path / "empty")): "empty: record.json cannot be read",
        (good, str(tmp_path / "edited")): "edited: its protocol is ffffffffffff, and that of",
        (good, str(tmp_path / "best")): "best: it has stored the best of each list only",
        (good, str(tmp_path / "lists")): "lists: its lists are others than those of",
        (good, other, "--by", "votes"): "invalid choice: 'votes'",
    }
    for words, message in cases.items():
        assert message in refusal(["ensemble", *words, "--out", str(tmp_path / "out")], capsys)
        assert not (tmp_path / "out").exists()
    assert "holds a finished run" in refusal(["ensemble", good, other, "--out", good], capsys)
