"""The folder of a run as users meet it: what finished stays until somebody asks for its end."""

from __future__ import annotations

import csv
import json
import math
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.runs.folder import holds_finished_run, output_folder
from tests.benchmarks.runs.tiny_runs import CSV, STEPS

ROOT = Path(__file__).resolve().parents[3]

pytestmark = [pytest.mark.filterwarnings("ignore")]  # what libraries warn of while whole commands run is theirs

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def printed() -> list[str]:
    """The lines that `run` has seen on stdout."""
    return []


@pytest.fixture
def run(mini_data: Path, tiny_causal: Path, capsys: pytest.CaptureFixture[str], printed: list[str]) -> Run:
    """Runs a command with a tiny backbone; returns its exit code and the lines it wrote to stderr."""

    def call(command: str, *options: str | Path, model: str = "LoRATuning") -> tuple[int, str]:
        backbone = [f"--model.backbone={tiny_causal}"] if model == "LoRATuning" else []
        words = [
            *(f"--model={model}", *backbone, "--data=MovieLens100K", "--data.batch_size=2"),
            *("--data.protocol.negatives=6", "--trainer.max_steps=2", "--trainer.val_check_interval=1"),
            f"--trainer.logger={CSV}",
        ]
        code = main([command, *words, *map(str, options)])
        text = capsys.readouterr()
        printed.extend(text.out.splitlines())
        return code, "\n".join(line for line in text.err.splitlines() if line.startswith("instructrec:"))

    return call


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_finished_run_is_replaced_only_when_asked(
    run: Run, tmp_path: Path, users_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    assert run("fit", "--out", out)[0] == 0
    before, remedy = content(out), "add --overwrite to replace it, or name another --out"
    assert {"record.json", "scores.npz", "metrics.csv", "config.yaml", "checkpoints/best.ckpt"} <= before.keys()
    best = out / "checkpoints" / "best.ckpt"

    with monkeypatch.context() as patch:
        patch.setattr("recmodels.methods.base.load_backbone", lambda *_, **__: pytest.fail("a model was loaded"))
        for words in (
            ["fit", "--out", out],
            ["fit", "--out", out, "--ckpt_path", "last"],
            ["fit", "-c", out / "config.yaml"],  # whose `out` is this folder
            ["test", "--out", out, "--ckpt_path", best],
        ):
            code, line = run(*words)
            assert code == 2
            assert line == f"instructrec: --out {out} holds a finished run; {remedy}"
            assert content(out) == before

    # What only reads a run leaves its record, its scores, its config and its learning curves as they are.
    assert run("validate", "--out", out, "--ckpt_path", best)[0] == 0
    assert run("predict", "-c", out / "config.yaml", "--ckpt_path", best, "--data.predict_file", users_file)[0] == 0
    after = content(out)
    assert after.pop("predictions.jsonl")
    for files in (before, after):
        del files["progress.json"]  # where the last process in this folder is
    assert after == before

    assert run("fit", "--out", out, "--overwrite", "--seed_everything=2")[0] == 0
    record = json.loads((out / "record.json").read_text())
    assert record["seed"] == 2
    assert "overwrite" not in record["config"], "a saved config that overwrites would do so whenever it is run"
    assert "overwrite" not in (out / "config.yaml").read_text()

    assert run("test", "--out", out, "--overwrite", "--ckpt_path", best)[0] == 0
    assert json.loads((out / "record.json").read_text())["guards"]["tested_checkpoint"] == str(best)
    assert best.is_file()


def test_runs_without_out_are_numbered(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("fit", model="Popularity")[0] == 0
    first = content(tmp_path / "results" / "run")
    assert run("fit", "--seed_everything=2", model="Popularity")[0] == 0
    assert content(tmp_path / "results" / "run") == first
    second = json.loads((tmp_path / "results" / "run-2" / "record.json").read_text())
    assert second["seed"] == 2
    assert second["cell"] == "run-2"


@pytest.mark.parametrize(
    ("record", "finished"),
    [
        (None, False),
        ('{"status": "failed"}', False),
        ('{"status": "interrupted"}', False),
        ('{"status": "finished"}', True),
        ('{"status": "fin', True),
        ("[]", True),
    ],
)
def test_a_folder_is_taken_where_its_record_may_be_a_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record: str | None, finished: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    first = Path("results/run")
    first.mkdir(parents=True)
    if record is not None:
        (first / "record.json").write_text(record)
    assert holds_finished_run(first) == finished
    assert output_folder(None, "fit", False) == Path("results/run-2" if finished else "results/run")
    assert output_folder(None, "fit", True) == output_folder(None, "predict", False) == first


def test_a_failure_is_recorded_in_the_folder_of_its_own_run(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("the\ndevice is gone")

    out, other = tmp_path / "run", tmp_path / "other"
    with monkeypatch.context() as patch:
        patch.setattr("recmodels.baselines.simple.Popularity.score_cases", broken)
        assert run("fit", "--out", out, model="Popularity") == (1, "instructrec: RuntimeError: the device is gone")
    record = json.loads((out / "record.json").read_text())
    assert (record["status"], record["exit_code"]) == ("failed", 1)
    assert record["error"] == "RuntimeError: the device is gone"
    assert "metrics" not in record

    before = content(out)
    assert run("fit", "--out", other, "--ckpt_path=no.ckpt", model="Popularity")[0] == 2
    assert content(out) == before, "the failure of a later command in the same process is not this run's"
    assert not other.exists(), "what is refused before it is built leaves nothing"


def test_every_file_of_a_run_is_explained(tiny_run: Path) -> None:
    page = (ROOT / "benchmarks" / "runs" / "README.md").read_text()
    for name in content(tiny_run):
        known = re.sub(r"step-\d+", "step-NNNNNNNN", name.removesuffix(".sha256"))
        assert f"`{known}`" in page, f"benchmarks/runs/README.md does not say what {name} is"


def test_learning_curves_are_written_by_step(tiny_grid: Path, tiny_run: Path) -> None:
    with (tiny_run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    steps = {
        name: [int(row["step"]) for row in rows if row.get(name)]
        for name in ("train/loss", "train/learning_rate", "val/quality", "val/mrr", "test/mrr")
    }
    assert steps["train/loss"] == steps["train/learning_rate"] == list(range(STEPS))
    assert steps["val/quality"] == steps["val/mrr"] == [1, 3]  # after every second step, counted from 0
    assert len(steps["test/mrr"]) == 1
    losses = [float(row["train/loss"]) for row in rows if row["train/loss"]]
    assert all(map(math.isfinite, losses))
    record = json.loads((tiny_run / "record.json").read_text())
    [tested] = [float(row["test/mrr"]) for row in rows if row["test/mrr"]]
    assert tested == pytest.approx(record["metrics"]["test/mrr"])
    columns = {name.partition("/")[0] for name in rows[0]}
    assert columns == {"epoch", "step", "train", "val", "test"}
    popular = (tiny_grid / "runs" / "model=popularity-1" / "metrics.csv").read_text()
    assert "train/loss" not in popular, "what trains nothing has no training loss"


@pytest.mark.parametrize("model", ["LoRATuning", "Popularity", "Random"])
def test_a_run_says_where_its_results_are_and_what_comes_next(
    run: Run, printed: list[str], users_file: Path, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    monkeypatch.chdir(users_file.parent)
    assert run("fit", "--out", "a run", model=model)[0] == 0
    assert printed[-3].startswith("hr@1 0.")
    assert re.sub(r"in \d+ s", "in 1 s", printed[-2]) == (
        "done in 1 s: a run/record.json (config, costs, metrics), a run/scores.npz (per user),"
        " a run/metrics.csv (learning curves)"
    )
    start, _, command = printed[-1].partition(": ")
    assert start == "next"
    assert main(shlex.split(command)[1:]) == 0, "the command works as it is printed"
    assert len(Path("a run/predictions.jsonl").read_text().splitlines()) == 2
