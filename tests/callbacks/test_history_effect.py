"""Scores without a history, against sequences one by one; the report's column, against scipy's correlation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from benchmarks.__main__ import main
from benchmarks.analysis.beyond_accuracy import beyond, read_facts
from benchmarks.analysis.leaderboard import build_tables
from benchmarks.analysis.runs import read_suite
from benchmarks.paths import CONFIGS
from benchmarks.report.sections import sections
from datamodules.batching.catalogue import catalogue_answers
from datamodules.datasets.movielens import MovieLens100K
from recmodels.methods.zero_shot import ZeroShot
from tests.benchmarks.cli.refusals import refusal
from tests.datamodules.options import grouped
from tests.recmodels.oracle import separate_scores

WARNINGS = ("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
pytestmark = [pytest.mark.filterwarnings(rule) for rule in WARNINGS]


@pytest.mark.parametrize("rule", ["sum", "mean"])
@torch.no_grad()
def test_titles_are_scored_as_sequences_of_their_own(mini_data: Path, tiny_causal: Path, rule: Any) -> None:
    data: Any = MovieLens100K(backbone=str(tiny_causal), **grouped())
    data.setup()
    model = ZeroShot(backbone=str(tiny_causal), scoring=rule)
    model.configure_model()
    encoder = data.collator.slates
    answers = [list(answer) for answer in catalogue_answers(encoder)]
    expected = separate_scores(model.eval().backbone, [(encoder.blank_prompt(), answers)], "right")  # type: ignore[arg-type]
    if rule == "mean":
        expected = expected / torch.tensor([len(answer) for answer in answers])
    scores = model.scores_without_history(data)
    assert scores is not None
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-4)


def test_the_report_tells_how_alike_lists_are_without_the_history(
    mini_data: Path, tiny_causal: Path, tmp_path: Path
) -> None:
    words = ["--model=ZeroShot", f"--model.backbone={tiny_causal}", "--data=MovieLens100K", "--trainer.logger=false"]
    words += ["--data.protocol.negatives=6", f"--out={tmp_path / 'grid/runs/zero'}"]
    assert main(["fit", *words, "-c", str(CONFIGS / "callbacks/history_effect.yaml")]) == 0
    facts, lists = read_facts(tmp_path / "grid/runs/zero")
    assert facts is not None
    assert facts.blank is not None
    assert lists is not None
    parts = [slice(*ends) for ends in zip(lists.start[:-1], lists.start[1:], strict=True)]
    each = [spearmanr(lists.score[part], facts.blank[lists.item[part]]).statistic for part in parts]
    (table,) = build_tables(read_suite(tmp_path / "grid"))[0]
    found = beyond(table)
    assert found.values["ZeroShot"]["as_blank"] == pytest.approx(np.mean(each), abs=1e-9)
    assert "as without history" in sections(table, found)[0].columns


def test_what_has_no_prompt_without_a_history_is_refused(
    mini_data: Path, tiny_causal: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    extra = [
        "-c",
        str(CONFIGS / "callbacks/history_effect.yaml"),
        "--trainer.logger=false",
        f"--out={tmp_path / 'run'}",
    ]
    for words in (
        ["--model=Popularity", "--data=MovieLens100K"],
        ["--model=ZeroShot", f"--model.backbone={tiny_causal}", "--data=MovieLens100K", "--data.task=reranking"],
    ):
        said = refusal(["fit", *words, "--data.protocol.negatives=6", *extra], capsys)
        assert "HistoryEffect needs a causal language model, and prompts of the history alone" in said
