"""Papers' tables beside ours: the cards, the verdicts, and the command from a grid's records to its pages."""

from __future__ import annotations

import csv
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.__main__ import main
from benchmarks.analysis.runs import Run, read_suite
from benchmarks.analysis.scores import Scores
from benchmarks.commands import reproduce as reproduction
from benchmarks.grid.cells import expand
from benchmarks.grid.suite import load_suite
from benchmarks.paths import CHECKOUT
from benchmarks.reproduce.cards import CARDS, Card, card_names, load_card
from benchmarks.reproduce.verdicts import compare, deviations, judge, matching, predicted, published_noise, setting
from datamodules.contract.errors import InputError

CARD = """
title: A table
source: arXiv 0000.00000
certainty: paper
protocol: leave-one-out
data: {users: 400}
settings: {data.protocol.negatives: 9}
deviations: [our own candidates]
sizes:
  small: {suite: benchmarks/suites/reproduce/instructrec_games.yaml, says: all of it}
numbers:
  - {method: SASRec, cells: {model: sasrec}, metrics: {hr@1: 0.5000, ndcg@5: 0.6}, settings: {model.loss: bce}}
  - {method: unpublished, cells: {model: item_knn}, metrics: {hr@1: null}}
  - {method: large, cells: {model: sasrec}, metrics: {hr@1: 0.7}, not_comparable: {small: a small model stands for it}}
  - {method: not run, metrics: {hr@1: 0.9}}
"""


@pytest.fixture
def card(tmp_path: Path) -> Card:
    path = tmp_path / "table.yaml"
    path.write_text(CARD)
    return load_card(str(path))


def made_run(model: str, seed: int, hits: int, users: int = 400, **changes: Any) -> Run:
    values = {"hr@1": np.r_[np.ones(hits), np.zeros(users - hits)], "ndcg@5": np.full(users, 0.6)}
    parts: dict[str, Any] = {
        "folder": Path("runs", model),
        "cell": f"{model}-{seed}",
        "name": model,
        "kind": "reference",
        "model": {"class": model},
        "data": "Toys",
        "fingerprint": "f" * 64,
        "description": {"statistics": {"users": users}},
        "task": "ranking",
        "num_candidates": 10,
        "seed": seed,
        "config": {
            "model": {"class_path": model, "init_args": {"loss": "softmax"}},
            "data": {"init_args": {"protocol": {"negatives": 9}}},
        },
        "environment": {"commit": "c0ffee"},
        "costs": {"train_seconds": 1.0},
        "metrics": {name: float(value.mean()) for name, value in values.items()},
        "guards": {},
        "samples": (),
        "search": {},
        "scores": Scores(np.array([f"{user:04}" for user in range(users)]), values),
        "settings": (f"model={model}", "data=games"),
    }
    return Run(**parts | changes)


def test_every_card_names_cells_of_its_suite() -> None:
    """A row's cells exist, differ in nothing but the seed, and its metrics are some that a run can have."""
    assert card_names() == sorted(path.stem for path in CARDS.rglob("*.yaml"))
    for name in card_names():
        card = load_card(name)
        assert CARDS.joinpath(f"{name}.yaml").read_text().startswith(f"# instructrec reproduce {name} "), name
        for size in card.sizes.values():
            cells = expand(load_suite(size.suite), Path("out"))
            found = 0
            for number in card.numbers:
                beside = [dict(cell.labels) for cell in cells if number.cells.items() <= dict(cell.labels).items()]
                rest = {tuple(sorted((k, v) for k, v in one.items() if k != "seed_everything")) for one in beside}
                if number.cells:
                    assert len(rest) <= 1, f"{name}: {number.method} names cells of several kinds"
                found += bool(number.cells and beside)
            assert found, f"{name}: no row stands beside a cell of {size.suite.name}"


def test_every_row_with_cells_is_run_at_some_size() -> None:
    for name in card_names():
        card = load_card(name)
        labels = [
            dict(cell.labels) for size in card.sizes.values() for cell in expand(load_suite(size.suite), Path("out"))
        ]
        for number in card.numbers:
            if number.cells:
                assert any(number.cells.items() <= one.items() for one in labels), f"{name}: {number.method}"


@pytest.mark.parametrize(
    ("expected", "got", "noise", "verdict"),
    [
        (0.0859, 0.08593, 0.0, "match"),
        (0.5, 0.5049, 0.0, "match"),  # one per cent
        (0.5, 0.4949, 0.0, "below"),
        (0.5, 0.5051, 0.0, "above"),
        (0.5, 0.52, 0.03, "within noise"),
        (0.5, 0.46, 0.03, "below"),
        (0.5, 0.6, math.nan, "above"),  # nobody knows the noise: it excuses nothing
    ],
)
def test_verdicts(expected: float, got: float, noise: float, verdict: str) -> None:
    assert judge(expected, got, digits=4, noise=noise) == verdict


def test_outcomes_of_a_card(card: Card) -> None:
    runs = [made_run("sasrec", 1, 190), made_run("sasrec", 2, 198), made_run("item_knn", 1, 100)]
    found = {(one.method, one.metric): one for one in compare(card, "small", runs)}
    sasrec = found["SASRec", "hr@1"]
    assert (sasrec.expected, sasrec.seeds) == (0.5, 2)
    assert sasrec.got == pytest.approx((190 + 198) / 800)
    assert sasrec.spread == pytest.approx(np.std([190 / 400, 198 / 400], ddof=1))
    assert sasrec.low < sasrec.got < sasrec.high
    assert sasrec.verdict == "within noise"
    assert found["SASRec", "ndcg@5"].verdict == "match"
    assert found["unpublished", "hr@1"].got == pytest.approx(0.25)
    assert found["unpublished", "hr@1"].reason == "nothing was published"
    assert found["large", "hr@1"].reason == "a small model stands for it"
    assert found["not run", "hr@1"].got is None
    assert {one.verdict for one in found.values() if one.reason} == {"not comparable"}
    far = {(one.method, one.metric): one for one in compare(card, "small", [made_run("sasrec", 1, 100)])}
    assert far["SASRec", "hr@1"].verdict == "below"


def test_a_row_without_cells_never_takes_a_run(card: Card) -> None:
    assert matching(card.numbers[3], [made_run("sasrec", 1, 10)]) == []


def test_deviations_are_counts_settings_and_what_the_card_tells(card: Card) -> None:
    config = {"model": {"init_args": {"loss": "softmax"}}, "data": {"init_args": {"protocol": {"negatives": 19}}}}
    other = made_run("sasrec", 1, 10, users=300, config=config)
    assert deviations(card, [other]) == [
        "data: users is 300, published 400",
        "data.protocol.negatives is 19, in the paper 9",
        "SASRec: model.loss is softmax, in the paper bce",
        "our own candidates",
    ]
    assert deviations(card, [made_run("item_knn", 1, 10)]) == ["our own candidates"]


def test_settings_are_found_through_init_args() -> None:
    config = {"model": {"init_args": {"optimizer": {"class_path": "Adam", "init_args": {"lr": 0.1}}}}, "seed": 3}
    assert setting(config, "model.optimizer.lr") == 0.1
    assert setting(config, "seed") == 3
    assert setting(config, "model.no.such") is None


def test_the_noise_of_published_numbers() -> None:
    """Hanley and McNeil's half-width for 1,000 cases, as TALLRec's floor is quoted: about 3.3 points."""
    assert published_noise("auc", 0.6724, 1000) == pytest.approx(0.033, abs=0.001)
    assert published_noise("hr@1", 0.5, 100) == pytest.approx(0.098, abs=0.001)
    assert published_noise("hr@1", 0.5, None) == 0.0


def test_predicted_cost_counts_a_frozen_backbone_as_cheaper() -> None:
    from benchmarks.reproduce.cards import Cost

    full, frozen = (predicted(Cost(3e9, 1e9, 1.0, 1, size)) for size in (16, 2))
    assert "1.8e+19 FLOPs (40.00 h" in full
    assert "45 GiB" in full
    assert "1.2e+19 FLOPs" in frozen


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("certainty: paper", "certainty: papers"), "nearest: paper"),
        (("hr@1: 0.7", "hit@1: 0.7"), "no metric hit@1"),
        (("hr@1: 0.7", "hr@1: much"), "a number or null"),
        (("says: all of it", "say: all of it"), "unknown key 'say'; nearest: says"),
        (("reproduce/instructrec_games.yaml", "reproduce/no.yaml"), "no file"),
        (("title: A table", "title: "), "title: a text is needed"),
        (("method: large", "name: large"), "unknown key 'name'"),
        (("sizes:\n  small:", "sizes:\n  tiny:"), "unknown key 'tiny'"),
    ],
)
def test_a_wrong_card_is_refused_in_one_line(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    path = tmp_path / "table.yaml"
    assert change[0] in CARD
    path.write_text(CARD.replace(*change))
    with pytest.raises(InputError, match=message) as refused:
        load_card(str(path))
    assert "\n" not in str(refused.value)
    assert "table.yaml" in str(refused.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["instructrec_gamez"], "nearest: instructrec_games"),
        (["instructrec_games", "--size", "huge"], "--size huge: instructrec_games has small"),
        (["instructrec_games", "--out", "no/such/folder", "--table-only"], "no/such/folder"),
    ],
)
def test_bad_use_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", *arguments]) == 2
    err = capsys.readouterr().err.strip()
    assert message in err
    assert "\n" not in err


def test_without_a_name_all_cards_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == card_names()


def write_run(folder: Path, model: str, hits: int) -> None:
    """A finished run of ten users as `fit` leaves it, without scores."""
    folder.mkdir(parents=True)
    record = {
        "format": 1,
        "name": model,
        "status": "finished",
        "protocol": {"fingerprint": "a" * 64, "task": "ranking", "statistics": {"users": 400}},
        "seed": 1,
        "config": {"data": {"init_args": {"protocol": {"negatives": 9}}}},
        "metrics": {"test/hr@1": hits / 10},
    }
    (folder / "record.json").write_text(json.dumps(record))


def test_the_command_writes_what_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "table.yaml").write_text(CARD)
    out = tmp_path / "grid"
    write_run(out / "runs" / "model=sasrec-0123456789abcdef", "sasrec", 5)
    words = ["reproduce", str(tmp_path / "table.yaml"), "--out", str(out), "--table-only"]
    assert main(words) == 0
    page = (out / "reproduction.md").read_text()
    assert page in capsys.readouterr().out
    assert "| SASRec | HR@1 | 0.5000 | paper | 0.5000 | – | 1 | **match** |" in page
    assert "- our own candidates" in page
    rows = list(csv.DictReader((out / "reproduction.csv").read_text().splitlines()))
    assert [row["verdict"] for row in rows if row["method"] == "SASRec"] == ["match", "not comparable"]
    told = json.loads((out / "reproduction.json").read_text())
    assert [one["cell"] for one in told["runs"]] == ["model=sasrec-0123456789abcdef"]
    assert told["numbers"][0]["got"] == 0.5
    readme = tmp_path / "README.md"
    readme.write_text("# Mine\n<!-- reproduce:table:begin -->old<!-- reproduce:table:end -->\n")
    assert main([*words, "--readme", str(readme)]) == 0
    assert (out / "reproduction.md").read_text() == page
    text = readme.read_text()
    assert "old" not in text
    assert "| SASRec | HR@1 | 0.5000 |" in text
    assert "not run" not in text


PUBLISHED = sorted(path.parent for path in (CHECKOUT / "benchmarks" / "records" / "reproduce").glob("*/runs"))


@pytest.mark.parametrize("record", PUBLISHED, ids=lambda path: path.name)
def test_the_published_runs_give_the_published_table(record: Path, tmp_path: Path) -> None:
    out = tmp_path / record.name
    shutil.copytree(record, out)
    table = [(out / f"reproduction.{kind}").read_text() for kind in ("md", "csv")]
    assert main(["reproduce", record.name, "--out", str(out), "--table-only"]) == 0
    assert [(out / f"reproduction.{kind}").read_text() for kind in ("md", "csv")] == table


def test_a_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "grid"
    assert main(["reproduce", "ml_100k_popularity", "--out", str(out), "--dry-run"]) == 0
    assert not out.exists()
    assert "9 cells: 9 waiting" in capsys.readouterr().out


@pytest.mark.integration
@pytest.mark.slow  # nine runs of the whole data set
def test_popularity_on_movielens_matches_to_the_last_digit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nine real runs and 27 numbers; resumed, nothing runs again."""
    out = tmp_path / "grid"
    assert main(["reproduce", "ml_100k_popularity", "--out", str(out)]) == 0
    found = compare(load_card("ml_100k_popularity"), "small", read_suite(out).runs)
    assert len(found) == 27
    for one in found:
        assert one.got is not None
        assert one.expected is not None
        assert abs(one.got - one.expected) < 5.5e-5, (one.method, one.metric, one.got)
    capsys.readouterr()
    assert main(["reproduce", "ml_100k_popularity", "--out", str(out)]) == 0
    assert "9 cells: 9 finished" in capsys.readouterr().out
    assert reproduction.load_card("ml_100k_popularity").data["users"] == 943
