"""Predictions of a cell's memory and time: against the models themselves, and against the committed records."""

from __future__ import annotations

import csv
import inspect
import json
from pathlib import Path
from typing import Any

import pytest

import recmodels
from benchmarks.grid.cells import expand
from benchmarks.grid.forecast import (
    PACKAGED,
    Shape,
    backbone_shape,
    cell_config,
    class_of,
    forecast,
    forecasts,
    machine_memory,
    options,
    time_correction,
    trained_parameters,
)
from benchmarks.grid.suite import load_suite
from recmodels.backbones.base import Backbone  # noqa: F401  # imported before a model is built

ROOT = Path(__file__).resolve().parents[3]
RATE = 4e11
SUITES = sorted((ROOT / "benchmarks" / "suites").rglob("*.yaml"))


def committed() -> dict[str, dict[str, float]]:
    """Costs of the committed quickstart by model."""
    rows = csv.DictReader((ROOT / "benchmarks/records/quickstart/leaderboard.csv").read_text().splitlines())
    kept = ("peak_memory_bytes", "trainable_parameters", "train_seconds", "validation_seconds", "test_seconds")
    return {row["method"]: {key: float(row[key]) for key in kept if row[key]} for row in rows}


def quickstart() -> dict[str, dict[str, Any]]:
    cells = expand(load_suite(ROOT / "benchmarks/suites/quickstart.yaml"), ROOT / "results/none")
    return {dict(cell.labels)["model"]: cell_config(cell.command) for cell in cells}


def test_the_committed_quickstart_is_predicted() -> None:
    measured = committed()
    for name, config in quickstart().items():
        made, real = forecast(config, RATE), measured[name]
        assert made.unknown == ""
        within = 0.5 if name == "token_classification" else 0.15
        assert made.memory_bytes == pytest.approx(real["peak_memory_bytes"], rel=within), name
        assert made.trained == pytest.approx(real.get("trainable_parameters", 0), rel=0.02), name

    # One finished cell corrects the time of the others.
    def seconds(name: str) -> float:
        return sum(measured[name][key] for key in ("train_seconds", "validation_seconds", "test_seconds"))

    made = {name: forecast(config, RATE).seconds for name, config in quickstart().items()}
    factor = time_correction([(made["lora"], seconds("lora"))])
    for name in ("adapter", "prefix", "full"):
        assert made[name] * factor == pytest.approx(seconds(name), rel=0.3), name


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("LoRATuning", {"r": 4}),
        ("LoRATuning", {"r": 8, "targets": ["q_proj", "v_proj"]}),
        ("AdapterTuning", {"bottleneck": 16}),
        ("AdapterTuning", {"placement": "pfeiffer"}),
        ("PrefixTuning", {"length": 4}),
        ("PartialTuning", {"layers": 1}),
        ("FullTuning", {}),
    ],
)
def test_trained_parameters_are_those_of_the_model(tiny_causal: Path, name: str, given: dict[str, Any]) -> None:
    model = getattr(recmodels, name)(backbone=str(tiny_causal), **given)
    model.configure_model()
    real = sum(value.numel() for value in model.trained().values())
    shape = backbone_shape({"model": {"class_path": name, "init_args": {"backbone": str(tiny_causal)}}})
    assert shape is not None
    expected = trained_parameters(name, given, shape)
    # The count of all weights leaves out the norms: vectors among matrices.
    assert expected == pytest.approx(real, rel=0.02 if name == "FullTuning" else 0)


def test_defaults_are_those_of_the_classes() -> None:
    for name, packaged in (("LoRATuning", "smollm2-135m-instruct"), ("TokenClassification", "all-minilm-l6-v2")):
        parameters = {}
        for each in reversed(inspect.getmro(getattr(recmodels, name))):
            parameters |= inspect.signature(each).parameters if "__init__" in vars(each) else {}
        assert parameters["backbone"].default == packaged
        assert backbone_shape({"model": {"class_path": name}}) == PACKAGED[packaged]


def test_commands_configure_what_they_say() -> None:
    command = (
        "instructrec fit -c configs/model/lora.yaml -c configs/data/ml_100k.yaml -c configs/trainer/quickstart.yaml"
    )
    made = cell_config([*command.split(), "--data.protocol.negatives=99", "--model.optimizer.lr=0.5", "--model.r=4"])
    assert class_of(made, "model") == "LoRATuning"
    assert options(made, "model")["r"] == 4
    assert options(made, "model")["optimizer"]["init_args"]["lr"] == 0.5
    assert options(made, "data")["protocol"]["negatives"] == 99
    assert options(made, "data")["protocol"]["test_users"] == 200
    assert made["trainer"]["max_steps"] == 40
    other = cell_config([*command.split(), "-c", "configs/model/prefix.yaml"])
    assert (class_of(other, "model"), options(other, "model").get("targets")) == ("PrefixTuning", None)


def test_more_of_anything_takes_more(tmp_path: Path) -> None:
    base = quickstart()["lora"]
    small = forecast(base, RATE)
    for key, value in (("batch_size", 16), ("targets_per_window", 40)):
        changed = json.loads(json.dumps(base))
        changed["data"]["init_args"][key] = value
        made = forecast(changed, RATE)
        assert made.memory_bytes > small.memory_bytes
        assert made.seconds > small.seconds
    folder = tmp_path / "large"
    folder.mkdir()
    told = {"num_hidden_layers": 80, "hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64}
    (folder / "config.json").write_text(json.dumps(told | {"num_key_value_heads": 8, "vocab_size": 128256}))
    command = ["instructrec", "fit", "-c", "configs/model/full.yaml", f"--model.backbone={folder}"]
    line = forecasts({"a": command}, {})["a"]
    assert line.startswith("WILL NOT FIT in ")
    assert f"{machine_memory() / 2**30:.1f} GiB" in line
    assert backbone_shape(cell_config(command)) == Shape(80, 8192, 28672, 1024, 128256, tied=False)


def test_what_is_not_known_is_said_and_not_guessed() -> None:
    for option, reason in (
        ("--model.backbone=nobody/unheard-of", "nothing is known of its backbone"),
        ("--model.class_path=Elsewhere", "nothing is known of Elsewhere"),
        ("--trainer.accelerator=gpu", "only runs on a CPU are predicted"),
    ):
        command = ["instructrec", "fit", "-c", "configs/model/lora.yaml", option]
        assert forecasts({"a": command}, {})["a"] == f"not predicted: {reason}"


@pytest.mark.parametrize("suite", SUITES, ids=lambda path: path.stem)
def test_every_suite_has_a_prediction_for_every_cell(suite: Path) -> None:
    cells = expand(load_suite(suite), ROOT / "results/none")
    lines = forecasts({cell.name: cell.command for cell in cells}, {})
    assert len(lines) == len(cells)
    assert all(line.startswith(("about ", "WILL NOT FIT in ", "not predicted: ")) for line in lines.values())


def test_finished_cells_correct_the_time_of_those_that_wait() -> None:
    commands = {name: ["instructrec", "fit", "-c", f"configs/model/{name}.yaml"] for name in ("lora", "adapter")}
    expected = forecast(cell_config(commands["lora"]), RATE)
    assert time_correction([(expected.seconds, 3 * expected.seconds)]) == pytest.approx(3)
    slow = forecasts(commands, {"lora": {"costs": {"train_seconds": 1e7}}})["adapter"]
    assert " h, trains 2,248,320 parameters" in slow
    assert float(slow.split(", ")[1].removesuffix(" h")) > 1000
