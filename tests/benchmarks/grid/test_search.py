"""The search before a grid: its file, its trials, kills in the middle of it, and what the cells and tables then say."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import wandb

from benchmarks.__main__ import main
from benchmarks.grid.cells import Cell, expand
from benchmarks.grid.ledger import Ledger
from benchmarks.grid.sampling import prunes, suggest
from benchmarks.grid.search_space import Parameter, Search
from benchmarks.grid.studies import Study, make_studies, propose, read_search_file, result_of, trial_cell
from benchmarks.grid.suite import load_suite
from benchmarks.launchers import Launcher
from datamodules.base import InstructionDataModule
from datamodules.contract.errors import InputError

ROOT = Path(__file__).resolve().parents[3]
LR = {"model.optimizer.lr": Parameter(low=1e-5, high=1e-2, log=True)}

SUITE = """
name: tiny
axes:
  model: [random, lora, full]
  seed_everything: [1, 2]
overrides: {model.optimizer.lr: 0.5}
search:
  trials: 5
  parameters: {model.optimizer.lr: {low: 1e-5, high: 0.01, log: true}}
  instead: [{when: {model: full}, parameters: {model.r: [2, 4, 8]}}]
  exclude: [{model: random}]
"""

RUN = """
import json, os, sys, time
words = dict(word[2:].split("=", 1) for word in sys.argv if word.startswith("--") and "=" in word)
out = sys.argv[sys.argv.index("--out") + 1]
with open(os.environ["LOG"], "a") as log:
    log.write(os.path.basename(out) + "\\n")
record = {"format": 1, "status": "finished", "error": None}
if "search.trial" in words:
    time.sleep(float(os.environ.get("NAP", "0")))
    rate = float(words.get("model.r", 0)) or float(words["model.optimizer.lr"])
    value = 1 - abs(rate - 0.001)
    record["trial"] = {"value": value, "values": [[1, value]], "pruned": False, "seconds": 2.0}
elif "search.result" in words:
    record["search"] = json.load(open(words["search.result"]))
if os.environ.get("WRONG") == words["model"]:
    sys.stderr.write("instructrec: no option 'model.rr'; the nearest is 'model.r'\\n")
    sys.exit(2)
open(out + "/record.tmp", "w").write(json.dumps(record))
os.replace(out + "/record.tmp", out + "/record.json")
"""

START = """
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from benchmarks.commands import benchmark as runner
from benchmarks.launchers import Launcher
report = ModuleType("benchmarks.report.write")
report.write_report = lambda _: SimpleNamespace(text="", markdown="", html="")
report.log_report = report.project_of = lambda _: None
sys.modules["benchmarks.report.write"] = report
prefix = (sys.executable, "-I", "-S", sys.argv[2])
sys.exit(runner.run_benchmark(Path("suite.yaml"), Path(sys.argv[1]), launcher=Launcher("local", prefix=prefix)))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "run.py").write_text(RUN)
    (tmp_path / "suite.yaml").write_text(SUITE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOG", str(tmp_path / "log.txt"))
    report = ModuleType("benchmarks.report.write")
    report.write_report = lambda _: SimpleNamespace(text="", markdown="", html="")  # type: ignore[attr-defined]
    report.log_report = report.project_of = lambda _: None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "benchmarks.report.write", report)
    return tmp_path


def benchmark(folder: Path, out: str = "out", **options: Any) -> int:
    from benchmarks.commands import benchmark as runner

    launcher = Launcher("local", prefix=(sys.executable, "-I", "-S", str(folder / "run.py")))
    return runner.run_benchmark(folder / "suite.yaml", folder / out, launcher=launcher, **options)


def proposals(folder: Path, out: str) -> dict[str, Any]:
    files = sorted((folder / out / "search").glob("*/trial-*.json"))
    return {f"{path.parent.name}/{path.name}": json.loads(path.read_text())["parameters"] for path in files}


def starts(folder: Path) -> list[str]:
    return (folder / "log.txt").read_text().split()


def test_every_searched_row_gets_the_same_trials_and_its_cells_what_was_best(folder: Path) -> None:
    assert benchmark(folder) == 0

    tried = proposals(folder, "out")
    by_study = {name: [said for key, said in tried.items() if key.startswith(name)] for name in ("lora-1", "full-1")}
    assert [len(each) for each in by_study.values()] == [5, 5]
    assert len(tried) == 10  # and none for the excluded row
    rates = [float(said["model.optimizer.lr"]) for said in by_study["lora-1"]]
    assert len(set(rates)) == 5
    assert all(1e-5 <= rate <= 1e-2 for rate in rates)
    best = min(rates, key=lambda rate: abs(rate - 0.001))
    records = {path.parent.name: json.loads(path.read_text()) for path in (folder / "out/runs").glob("*/record.json")}
    assert len(records) == 6
    for name, record in records.items():
        if name.startswith("lora"):
            assert float(record["search"]["chosen"]["model.optimizer.lr"]) == best
            assert (record["search"]["trials"], record["search"]["completed_trials"]) == (5, 5)
            assert record["search"]["space"] == {"model.optimizer.lr": "0.00001 to 0.01 (log)"}
            assert record["search"]["seconds"] == 10.0
        assert ("search" in record) == (not name.startswith("random"))
    commands = {cell["name"]: cell["command"] for cell in json.loads((folder / "out/cells.json").read_text())["cells"]}
    assert commands.keys() == records.keys()
    lora = next(command for name, command in commands.items() if name.startswith("lora"))
    assert f"--model.optimizer.lr={by_study['lora-1'][rates.index(best)]['model.optimizer.lr']}" in lora
    assert "--model.optimizer.lr=0.5" not in lora  # the suite's own value is what was searched


def test_a_second_start_runs_nothing_and_more_trials_run_only_the_new_ones(folder: Path) -> None:
    assert benchmark(folder) == 0
    first = starts(folder)
    assert benchmark(folder) == 0
    assert starts(folder) == first
    (folder / "suite.yaml").write_text(SUITE.replace("trials: 5", "trials: 6"))
    before = proposals(folder, "out")
    assert benchmark(folder) == 0
    after = proposals(folder, "out")
    assert before.items() <= after.items()
    assert len(after) == len(before) + 2
    new = starts(folder)[len(first) :]
    assert len([name for name in new if "-trial-" in name]) == 2
    assert len(new) == 2 + 4  # the searched cells say how many trials chose for them


def test_kill_nine_in_the_middle_repeats_no_finished_trial_and_changes_no_choice(folder: Path) -> None:
    assert benchmark(folder, "whole") == 0
    whole = len(starts(folder))
    (folder / "log.txt").write_text("")
    environment = os.environ | {"NAP": "0.25", "PYTHONPATH": str(ROOT)}
    kills = 0
    for wanted in (1, 3, 6):
        command = [sys.executable, "-c", START, "out", str(folder / "run.py")]
        with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL) as runner:
            while len(list((folder / "out/search/runs").glob("*/record.json"))) < wanted:
                assert runner.poll() is None, "the search ended before the kill"
                time.sleep(0.02)
            runner.send_signal(signal.SIGKILL)
        kills += 1
    finished = {path.parent.name for path in (folder / "out/search/runs").glob("*/record.json")}
    assert len(finished) < 10
    marks = {name: starts(folder).count(name) for name in finished}

    assert benchmark(folder) == 0

    again = starts(folder)
    assert {name: again.count(name) for name in finished} == marks
    assert len(again) <= whole + kills  # a killed runner's own trial began twice, and nothing else did
    assert [*proposals(folder, "out").values()] == [*proposals(folder, "whole").values()]
    chosen = {out: sorted((folder / out / "search").glob("*/chosen.json")) for out in ("out", "whole")}
    assert [path.read_text() for path in chosen["out"]] == [path.read_text() for path in chosen["whole"]]


def test_wrong_input_ends_the_search_after_its_first_round(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WRONG", "full")
    with pytest.raises(
        InputError, match=r"search: model=full, .* trial 000: exit code 2; instructrec: no option 'model.rr'"
    ):
        benchmark(folder)
    assert len(starts(folder)) == 2


def test_a_study_of_failures_chooses_nothing(folder: Path) -> None:
    studies = make_studies(
        load_suite(folder / "suite.yaml").search, expand(load_suite(folder / "suite.yaml"), folder), folder
    )
    assert benchmark(folder) == 0
    study = make_studies(
        load_suite(folder / "suite.yaml").search,
        expand(load_suite(folder / "suite.yaml"), folder / "out"),
        folder / "out",
    )[0]
    assert len(studies) == 2
    for place in range(5):
        path = folder / "out/search/runs" / trial_cell(study, place).name / "record.json"
        path.write_text(json.dumps({"format": 1, "status": "failed", "error": "non-finite loss at step 3"}))
    with Ledger(folder / "out/search") as ledger, pytest.raises(InputError, match="no trial has a value; .*non-finite"):
        result_of(study, ledger)
    path.write_text(
        json.dumps({"format": 1, "status": "finished", "trial": {"value": 0.2, "values": [], "seconds": 1}})
    )
    with Ledger(folder / "out/search") as ledger:
        found = result_of(study, ledger)
    assert found is not None
    assert (found["trial"], found["completed_trials"], found["failed_trials"]) == (4, 1, 4)


def test_a_dry_run_says_what_is_searched_and_writes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(folder.rglob("*"))
    assert benchmark(folder, dry_run=True) == 0
    assert sorted(folder.rglob("*")) == before
    printed = capsys.readouterr().out
    assert (
        "waiting   search of model=lora: 5 trials (tpe, val/quality) of model.optimizer.lr in 0.00001 to 0.01 (log)"
        in printed
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{trials: 2}", "search.parameters: names no option"),
        ("{trials: 0, parameters: {model.r: [1]}}", "search.trials is 0, must be a whole number from 1"),
        ("{trials: true, parameters: {model.r: [1]}}", "search.trials is True, must be a whole number"),
        ("{trials: 2, parametres: {}}", "unknown key 'parametres'; nearest: parameters"),
        ("{trials: 2, parameters: {model.r: 3}}", "search.parameters.model.r: a list of values or"),
        ("{trials: 2, parameters: {model.r: {low: 3, high: 1}}}", "low is 3 with high 1, must be below high"),
        ("{trials: 2, parameters: {model.r: {low: 1, high: 1}}}", "low is 1 with high 1, must be below high"),
        ("{trials: 2, parameters: {model.r: {low: 0, high: 1, log: true}}}", "must be above 0 and below high"),
        ("{trials: 2, parameters: {model.r: {low: x, high: 1}}}", "low is 'x', must be a number"),
        ("{trials: 2, parameters: {model.r: {lo: 1, high: 2}}}", "unknown key 'lo'; nearest: low"),
        ("{trials: 2, parameters: {model.r: [1, 1]}}", "a value stands there twice"),
        ("{trials: 2, parameters: {seed_everything: [1, 2]}}", "'seed_everything' cannot be searched"),
        ("{trials: 2, parameters: {data.protocol.negatives: [1, 2]}}", "cannot be searched"),
        ("{trials: 2, parameters: {model.r: [1, 2]}, metric: test/hr@5}", "must be of validation, such as val/quality"),
        ("{trials: 2, parameters: {model.r: [1, 2]}, metric: val/ndgc@5}", "no metric of that name; nearest: ndcg"),
        ("{trials: 2, parameters: {model.r: [1, 2]}, sampler: tpee}", "search.sampler is 'tpee'; nearest: tpe"),
        ("{trials: 3, parameters: {model.r: [1, 2]}, sampler: grid}", "trials is 3, the grid of model.r has 2 points"),
        (
            "{trials: 1, parameters: {model.r: [1]}, sampler: grid,"
            " instead: [{when: {model: lora}, parameters: {model.alpha: [1, 2]}}]}",
            "trials is 1, the grid of model.alpha has 2 points",
        ),
        ("{trials: 2, parameters: {model.r: {low: 1, high: 2}}, sampler: grid}", "the sampler grid takes lists"),
        ("{trials: 2, parameters: {model.r: [1]}, exclude: [{model: lorra}]}", "no value lorra; nearest: lora"),
        (
            "{trials: 2, parameters: {model.r: [1]}, exclude: [{model: [lora, full, random]}]}",
            "leaves no cell to search",
        ),
    ],
)
def test_a_mistake_in_the_section_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], text: str, expected: str
) -> None:
    head = SUITE.partition("search:")[0]
    (folder / "suite.yaml").write_text(f"{head}search: {text}\n")
    assert main(["benchmark", str(folder / "suite.yaml"), "--out", str(folder / "out"), "--dry-run"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert expected in lines[0]


def test_a_grid_tries_every_point_once(folder: Path) -> None:
    text = "search: {trials: 4, sampler: grid, exclude: [{model: [random, full]}], parameters: {model.r: [1, 2], model.x: [a, b]}}"
    (folder / "suite.yaml").write_text(f"{SUITE.partition('search:')[0]}{text}\n")
    assert benchmark(folder) == 0
    tried = sorted(tuple(said.values()) for said in proposals(folder, "out").values())
    assert tried == [("1", "a"), ("1", "b"), ("2", "a"), ("2", "b")]


def test_the_sampler_moves_towards_what_was_better() -> None:
    search = Search(16, LR)
    before: list[dict[str, Any]] = []
    for place in range(16):
        rate = float(suggest(search, LR, before, place)["model.optimizer.lr"])
        value = -abs(rate - 0.003)
        text = {"model.optimizer.lr": str(rate)}
        before.append({"parameters": text, "state": "completed", "value": value, "values": []})
    early, late = before[:8], before[8:]
    assert sum(said["value"] for said in late) > sum(said["value"] for said in early)
    assert suggest(search, LR, before, 7) == suggest(search, LR, before, 7)
    assert suggest(search, LR, before, 7) != suggest(search, LR, before, 8)


def test_pruning_knows_which_way_a_metric_is_better() -> None:
    rivals = [[[10.0, 0.9], [20.0, 0.8]], [[10.0, 1.0], [20.0, 0.9]]]
    assert prunes("median", "val/rmse", rivals, [[10, 2.0]])
    assert not prunes("median", "val/rmse", rivals, [[10, 0.1]])
    assert prunes("median", "val/auc", rivals, [[10, 0.1]])
    assert not prunes("none", "val/auc", rivals, [[10, 0.1]])
    assert not prunes("median", "val/auc", rivals[:1], [[10, 0.1]])  # one rival is no median


def trial_file(path: Path, **said: Any) -> Path:
    content = {"format": 1, "parameters": {}, "metric": "val/quality", "pruner": "median", "rivals": []} | said
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def fit(mini_data: Path, tiny_causal: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs one fit of a model config, with a tiny backbone; returns exit code, stderr and record."""

    def call(model: str, *words: str, out: str = "run") -> tuple[int, str, dict[str, Any]]:
        options = ["--trainer.max_steps=6", "--trainer.val_check_interval=2", "--data.protocol.negatives=6"]
        backbone = [f"--model.backbone={tiny_causal}"] if model == "lora" else []
        base = ["-c", str(ROOT / f"configs/model/{model}.yaml"), "-c", str(ROOT / "configs/data/ml_100k.yaml")]
        code = main(["fit", *base, *options, *backbone, "--trainer.logger=false", *words, "--out", str(tmp_path / out)])
        wandb.finish()
        path = tmp_path / out / "record.json"
        return code, capsys.readouterr().err, json.loads(path.read_text()) if path.is_file() else {}

    return call


QUIET = [
    pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("UserWarning", "DeprecationWarning", "FutureWarning")
]


class TestRealTrials:
    """Trials as their own command runs them."""

    pytestmark = QUIET

    @pytest.mark.parametrize("model", ["lora", "popularity", "item_knn"])
    def test_a_trial_reads_validation_cases_only(
        self, fit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
    ) -> None:
        def refuse(*_: object) -> None:
            pytest.fail("a trial read the test cases")

        monkeypatch.setattr(InstructionDataModule, "test_dataloader", refuse)
        code, err, record = fit(model, f"--search.trial={trial_file(tmp_path / 'trial.json')}")
        assert code == 0, err
        assert record["status"] == "finished"
        assert record["trial"]["value"] == max(value for _, value in record["trial"]["values"])
        assert len(record["trial"]["values"]) == (3 if model == "lora" else 1)
        assert not record["trial"]["pruned"]
        assert "metrics" not in record
        left = {path.name for path in (tmp_path / "run").rglob("*") if path.is_file()}
        assert not left & {"scores.npz", "best.ckpt", "last.ckpt"}

    def test_a_trial_behind_its_rivals_ends_early(self, fit: Any, tmp_path: Path) -> None:
        rivals = [[[2, 2.0], [4, 2.0], [6, 2.0]]] * 2
        code, err, record = fit("lora", f"--search.trial={trial_file(tmp_path / 'trial.json', rivals=rivals)}")
        assert code == 0, err
        assert record["trial"]["pruned"]
        assert [step for step, _ in record["trial"]["values"]] == [2]
        assert record["costs"]["train_steps"] == 2

    def test_the_record_says_how_its_settings_were_chosen(self, fit: Any, tmp_path: Path) -> None:
        found = {"format": 1, "trials": 8, "metric": "val/quality", "chosen": {"model.r": "4"}}
        (tmp_path / "chosen.json").write_text(json.dumps(found))
        code, err, record = fit("popularity", f"--search.result={tmp_path / 'chosen.json'}")
        assert code == 0, err
        assert record["search"] == {key: value for key, value in found.items() if key != "format"}
        assert any(name.startswith("test/") for name in record["metrics"])

    @pytest.mark.parametrize(
        ("content", "expected"),
        [
            ("", "not a file of a search"),
            ("[1]", "not a file of a search (no metric)"),
            ('{"format": 2, "metric": "val/quality", "pruner": "median", "rivals": []}', "(no format)"),
            ('{"format": 1, "metric": "val/quality", "pruner": "median", "rivals": [1]}', "rivals must be lists"),
            (None, "cannot be read (No such file or directory)"),
        ],
    )
    def test_a_bad_file_is_one_line(
        self, fit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None, expected: str
    ) -> None:
        if content is not None:
            (tmp_path / "trial.json").write_text(content)
        code, err, _ = fit("lora", f"--search.trial={tmp_path / 'trial.json'}")
        assert code == 2
        lines = [line for line in err.splitlines() if line.startswith("instructrec:")]
        assert len(lines) == 1
        assert expected in lines[0]

    def test_a_metric_that_is_not_measured_names_the_nearest(self, fit: Any, tmp_path: Path) -> None:
        trial = trial_file(tmp_path / "trial.json", metric="val/hr@50")
        code, err, record = fit("popularity", f"--search.trial={trial}")
        assert code == 2
        assert "search.metric is 'val/hr@50', which is not measured; nearest: val/hr@5" in err
        assert record["exit_code"] == 2


def test_a_search_without_optuna_is_refused_before_anything_runs(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "optuna" else find(name, *rest)
    )

    assert main(["benchmark", str(folder / "suite.yaml"), "--out", str(folder / "out")]) == 2
    said = capsys.readouterr().err
    assert said == "instructrec: a search needs optuna, which is not installed: pip install 'instructrec[search]'\n"
    assert not (folder / "out").exists()


CELL = Cell("lora-00000000", "lora", (("model", "lora"),), ("instructrec", "fit", "--name=x", "--out", "o/runs/l"), "k")
R = {"model.r": Parameter(low=1, high=4096, whole=True)}


def study_of(search: Search, out: Path) -> Study:
    (study,) = make_studies(search, [CELL], out)
    return study


def outcome(tmp_path: Path, metric: str, *trials: dict[str, Any]) -> dict[str, Any]:
    """What is chosen among trials that say this of themselves."""
    study = study_of(Search(len(trials), R, sampler="random", metric=metric), tmp_path)
    with Ledger(tmp_path / "search") as ledger:
        for number, trial in enumerate(trials):
            propose(study, ledger, number)
            lease = ledger.acquire(trial_cell(study, number).name)
            assert lease is not None
            ledger.write_record(lease, {"format": 1, "status": "finished", "error": None, "trial": trial})
        result = result_of(study, ledger)
    assert result is not None
    return result


def test_the_best_value_is_chosen_whichever_way_is_better(tmp_path: Path) -> None:
    values = [{"value": 0.5}, {"value": 0.25}, {"value": 0.75}]
    assert outcome(tmp_path / "up", "val/ndcg@10", *values)["trial"] == 2
    assert outcome(tmp_path / "down", "val/rmse", *values)["trial"] == 1


def test_a_trial_that_was_given_up_is_chosen_only_where_none_has_ended(tmp_path: Path) -> None:
    pruned = {"value": 0.9, "pruned": True}
    assert outcome(tmp_path / "some", "val/quality", pruned, {"value": 0.1})["trial"] == 1
    assert outcome(tmp_path / "none", "val/quality", pruned, {"value": None})["trial"] == 0


def test_a_study_is_another_with_other_rounds_and_the_later_space_wins(tmp_path: Path) -> None:
    rule = (("model", frozenset({"lora"})),)
    spaces = ((rule, {"model.a": Parameter(choices=(1,))}), (rule, {"model.b": Parameter(choices=(1,))}))
    assert list(study_of(Search(2, R, instead=spaces), tmp_path).space) == ["model.b"]
    assert len({study_of(Search(2, R, parallel=parallel), tmp_path).name for parallel in (1, 2)}) == 2


def test_trials_of_a_round_differ_and_know_only_the_rounds_before(tmp_path: Path) -> None:
    study = study_of(Search(4, R, parallel=2), tmp_path)
    with Ledger(tmp_path / "search") as ledger:
        propose(study, ledger, 0)
        propose(study, ledger, 1)
        tried = [
            read_search_file(study.folder / f"trial-00{number}.json", ["parameters", "rivals"]) for number in (0, 1)
        ]
        assert tried[0]["parameters"] != tried[1]["parameters"]
        first = tried[1]
        lease = ledger.acquire(trial_cell(study, 0).name)
        assert lease is not None
        said = {"value": 0.5, "values": [[10, 0.5]]}
        ledger.write_record(lease, {"format": 1, "status": "finished", "error": None, "trial": said})
        (study.folder / "trial-001.json").unlink()
        propose(study, ledger, 1)  # proposed again, when its neighbour has ended: as before
        assert read_search_file(study.folder / "trial-001.json", ["rivals"]) == first


def test_a_proposal_rounded_for_a_command_stays_in_its_range() -> None:
    narrow = {"model.x": Parameter(low=0.123456, high=0.123458)}
    for seed in range(5):
        value = float(suggest(Search(2, narrow, sampler="random"), narrow, [], seed)["model.x"])
        assert 0.123456 <= value <= 0.123458


@pytest.mark.parametrize(("high", "whole"), [("4", True), ("4.5", False)])
def test_a_range_is_of_whole_numbers_where_both_ends_are(folder: Path, high: str, whole: bool) -> None:
    (folder / "suite.yaml").write_text(
        f"name: t\naxes: {{model: [a, b]}}\nsearch: {{trials: 2, parameters: {{model.r: {{low: 1, high: {high}}}}}}}\n"
    )
    search = load_suite(folder / "suite.yaml").search
    assert search is not None
    assert search.parameters["model.r"].whole == whole
