"""One training tested under several rules of candidates (`protocol.also`), against one run for each rule."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.analysis.leaderboard import build_tables
from benchmarks.analysis.runs import read_results, read_suite
from benchmarks.grid.ledger import Ledger
from benchmarks.report.publish import publish_runs
from benchmarks.runs.resuming import settings_of
from datamodules.contract.errors import InputError

MODELS = {"lora": "LoRATuning", "zero_shot": "ZeroShot", "item_knn": "ItemKNN"}
SHARED = ("--data=MovieLens100K", "--data.batch_size=2", "--data.protocol.negatives=6", "--trainer.max_steps=3")
PLAIN = ("--trainer.logger=false", "--trainer.precision=32-true", "--data.protocol.test_users=14")
RULES = {"uniform": "", "popularity": "popularity", "full": "full"}


@pytest.fixture(scope="module")
def grids(
    tmp_path_factory: pytest.TempPathFactory, data_root: Path, tiny_causal: Path, scratch_cache: Path
) -> tuple[Path, Path]:
    """A grid of runs under three rules, and one of runs that each have one."""
    from benchmarks.__main__ import main

    root = tmp_path_factory.mktemp("also")
    for row, model in MODELS.items():
        words = [f"--model={model}", f"--name={row}", *SHARED, *PLAIN]
        words += [f"--model.backbone={tiny_causal}"] if row != "item_knn" else []
        runs = {root / "one" / "runs" / row: ["--data.protocol.also=[popularity, full]"]}
        runs |= {root / "each" / "runs" / f"{row}-{r}": [f"--data.protocol.candidates={r}"] for r in RULES}
        for out, extra in runs.items():
            with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                patch.setenv("INSTRUCTREC_DATA", str(data_root))
                patch.setenv("INSTRUCTREC_CACHE", str(scratch_cache))
                assert main(["fit", *words, *extra, f"--out={out}"]) == 0
    return root / "one", root / "each"


def stored(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


@pytest.mark.parametrize("row", MODELS)
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_gives_what_a_run_of_its_own_gives(grids: tuple[Path, Path], row: str, rule: str) -> None:
    one, each = grids
    own = each / "runs" / f"{row}-{rule}"
    dot = f".{RULES[rule]}" if RULES[rule] else ""
    ours, theirs = stored(one / "runs" / row / f"scores{dot}.npz"), stored(own / "scores.npz")
    assert ours.keys() == theirs.keys()
    for name, values in ours.items():
        if name == "score" and row != "item_knn":  # other batches, other order of sums
            assert values == pytest.approx(theirs[name], abs=1e-4)
        else:
            assert np.array_equal(values, theirs[name]), name
    record, other = (
        json.loads(path.read_text()) for path in (one / "runs" / row / f"record{dot}.json", own / "record.json")
    )
    assert record["protocol"] == other["protocol"]
    assert record["metrics"].keys() == other["metrics"].keys()
    for name, value in record["metrics"].items():
        assert value == pytest.approx(other["metrics"][name], abs=1e-6), name


def test_costs_and_samples_are_told_once_and_read_for_every_rule(grids: tuple[Path, Path]) -> None:
    folder = grids[0] / "runs" / "lora"
    main, further = (json.loads((folder / f"record{dot}.json").read_text()) for dot in ("", ".popularity"))
    assert main["also"] == ["popularity", "full"]
    assert main["costs"]["train_steps"] == 3
    assert len(main["samples"]) == 5
    assert not {"costs", "samples", "also"} & further.keys()
    results = read_results(folder)
    assert [run.rule for run in results] == ["", "popularity", "full"]
    assert all(run.costs == results[0].costs for run in results)
    assert len({run.fingerprint for run in results}) == 3
    assert main["costs"]["test_cases_per_second"] == pytest.approx(3 * 14 / main["costs"]["test_seconds"], rel=0.05)


def test_the_report_has_the_tables_of_separate_runs(grids: tuple[Path, Path]) -> None:
    (ours, problems), (theirs, _) = (build_tables(read_suite(folder)) for folder in grids)
    assert problems == []
    assert ours[0].description["candidates"].startswith("uniform")
    assert "among" not in ours[0].title
    assert {title.partition(", protocol")[0] for title in (table.title for table in ours[1:])} == {
        f"MovieLens100K, ranking among {rule} candidates" for rule in ("popularity", "full")
    }
    of_rule = {table.fingerprint: table for table in theirs}
    assert {table.fingerprint for table in ours} == of_rule.keys()
    for table in ours:
        other = of_rule[table.fingerprint]
        assert [row.name for row in table.rows] == [row.name for row in other.rows]
        for row, twin in zip(table.rows, other.rows, strict=True):
            assert row.metrics == pytest.approx(twin.metrics, abs=1e-6)


def test_published_runs_bring_every_rule(grids: tuple[Path, Path], tmp_path: Path) -> None:
    publish_runs(grids[0], tmp_path / "public")
    tables = build_tables(read_suite(tmp_path / "public"))[0]
    assert sorted(len(table.rows) for table in tables) == [3, 3, 3]


def test_a_cell_is_done_with_the_records_of_all_its_rules(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        folder = ledger.folder("a")
        folder.mkdir(parents=True)
        record = {"format": 1, "status": "finished", "error": None}
        (folder / "record.json").write_text(json.dumps(record | {"also": ["popularity"]}))
        assert ledger.state("a") == "waiting"
        (folder / "record.popularity.json").write_text(json.dumps(record))
        assert ledger.state("a") == "finished"


def test_a_run_may_be_continued_with_other_further_rules() -> None:
    def settings(**protocol: Any) -> dict[str, str]:
        return settings_of({"data": {"init_args": {"protocol": {"candidates": "uniform", **protocol}}}})

    assert settings(also=["popularity"]) == settings(also=[]) == settings()  # as saved before there were any
    assert settings(candidates="full") != settings()


def test_a_lost_record_of_a_further_rule_is_named(grids: tuple[Path, Path], tmp_path: Path) -> None:
    import shutil

    folder = Path(shutil.copytree(grids[0] / "runs" / "item_knn", tmp_path / "runs" / "item_knn"))
    (folder / "record.popularity.json").unlink()
    with pytest.raises(InputError, match=r"record\.popularity\.json cannot be read"):
        read_results(folder)
    assert read_suite(tmp_path).problems[0].state == "unreadable"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--data.protocol.also=[uniform]"], "protocol.also is [uniform], must name other rules than"),
        (["--data.protocol.also=[full, full]"], "protocol.also is [full, full], must name"),
        (["--data.protocol.also=[published]"], "protocol.also is [published], must name"),
        (["--data.protocol.also=[popular]"], "data.protocol.also: 'popular' is not one of uniform,"),
        (["--data.protocol.also=[full]", "--data.task=like"], "data.task 'like' ranks no candidates; leave protocol.also out"),
    ],
)  # fmt: skip
def test_a_rule_that_cannot_be_is_refused_in_one_line(
    words: list[str], told: str, tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from benchmarks.__main__ import main

    monkeypatch.setenv("INSTRUCTREC_DATA", str(data_root))
    model = "--model=ZeroShot" if "--data.task=like" in words else "--model=Popularity"
    try:
        code = main(["fit", model, "--data=MovieLens100K", *words, f"--out={tmp_path / 'run'}"])
    except SystemExit as end:  # of the parser
        code = int(end.code or 0)
    assert code == 2
    line = capsys.readouterr().err.strip()
    assert told in line
    assert len(line.splitlines()) == 1
