"""Predictions of a cell's memory and time: against the models themselves, and against the committed records."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse import ArgumentParser
from transformers import AutoConfig, AutoModelForCausalLM

import recmodels
from benchmarks.grid.cells import expand
from benchmarks.grid.forecast import (
    cell_config,
    class_of,
    forecast,
    forecasts,
    machine_memory,
    options,
    time_correction,
)
from benchmarks.grid.parameters import PACKAGED, count_parameters
from benchmarks.grid.suite import load_suite
from datamodules.contract.errors import InputError
from datamodules.sources.pretrained import pretrained_folder
from recmodels.base import Recommender
from recmodels.methods.base import InstructionRecommender
from recmodels.methods.token_classification import TokenClassification

ROOT = Path(__file__).resolve().parents[3]
RATE = 4e11
MODELS = sorted((ROOT / "configs" / "model").rglob("*.yaml"))
SUITES = sorted((ROOT / "benchmarks" / "suites").rglob("*.yaml"))


def committed() -> dict[str, dict[str, float]]:
    """Costs by model of the quickstart on the machine with bfloat16 units that the constants were chosen on."""
    rows = csv.DictReader((ROOT / "tests/golden/quickstart_costs.csv").read_text().splitlines())
    kept = ("peak_memory_bytes", "trainable_parameters", "train_seconds", "validation_seconds", "test_seconds")
    return {row["method"]: {key: float(row[key]) for key in kept if row[key]} for row in rows}


def quickstart() -> dict[str, dict[str, Any]]:
    cells = expand(load_suite(ROOT / "tests/golden/quickstart_titles.yaml"), ROOT / "results/none")
    return {dict(cell.labels)["model"]: cell_config(cell.command) for cell in cells}


def test_the_committed_quickstart_is_predicted() -> None:
    measured = committed()
    assert len(measured) == 8
    for name, config in quickstart().items():
        if name not in measured:
            continue
        made, real = forecast(config, RATE), measured[name]
        assert made.unknown == "", name
        assert made.memory_bytes == pytest.approx(real["peak_memory_bytes"], rel=0.15), name
        assert made.trained == real.get("trainable_parameters", 0), name

    # One finished cell corrects the time of the others.
    def seconds(name: str) -> float:
        return sum(measured[name][key] for key in ("train_seconds", "validation_seconds", "test_seconds"))

    made = {name: forecast(config, RATE).seconds for name, config in quickstart().items()}
    factor = time_correction([(made["lora"], seconds("lora"))])
    for name in ("adapter", "prefix", "full"):
        assert made[name] * factor == pytest.approx(seconds(name), rel=0.3), name


def real(config: dict[str, Any]) -> int | str:
    """What the model of a config trains, built as the command line does it; the reason where it cannot be."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Recommender, "model")
    try:
        model = parser.instantiate(parser.parse_object(config)).model
        model.configure_model()
    except InputError as error:
        return str(error)
    return sum(value.numel() for value in model.trained().values())


def counted(config: dict[str, Any]) -> int | str:
    try:
        return count_parameters(class_of(config, "model"), options(config, "model")).trained
    except InputError as error:
        return str(error)


def model_config(path: Path, backbone: Path) -> dict[str, Any]:
    model = yaml.safe_load(path.read_text())["model"]
    given = model.get("init_args", {}) | {"backbone": str(backbone)}
    given.pop("optimizer", None)  # bitsandbytes has an AdamW, too
    return {"model": model | {"init_args": given}}


@pytest.mark.filterwarnings("ignore:.loftq_config. specified:UserWarning")  # PEFT's word on jsonargparse's defaults
@pytest.mark.parametrize("path", MODELS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_config_trains_the_number_that_was_counted(path: Path, tiny_causal: Path, tiny_encoder: Path) -> None:
    name = class_of(yaml.safe_load(path.read_text()), "model")
    if not issubclass(getattr(recmodels, name), InstructionRecommender | TokenClassification):
        pytest.skip("no language model is tuned")
    config = model_config(path, tiny_encoder if name == "TokenClassification" else tiny_causal)
    if path.stem == "adamss":
        assert counted(config) == "the weights decide how much AdamssConfig trains"
    elif path.stem == "qlora":  # in four bits where there is a library for it; as many train
        config["model"]["init_args"]["quantization"] = None
        assert counted(model_config(path, tiny_causal)) == real(config)
    else:
        assert counted(config) == real(config)


@pytest.mark.parametrize("name", ["adaption_prompt", "boft", "frod", "osf", "shira", "trainable_tokens", "vera"])
def test_methods_that_look_at_the_weights_are_counted_on_a_few_layers(
    name: str, tiny_causal: Path, tmp_path: Path
) -> None:
    network = AutoModelForCausalLM.from_config(
        AutoConfig.from_pretrained(tiny_causal, trust_remote_code=False, num_hidden_layers=6)
    )
    network.save_pretrained(tmp_path)
    config = model_config(ROOT / "configs/model/peft" / f"{name}.yaml", tmp_path)
    found = counted(config)
    assert isinstance(found, int)
    assert found == real(config)


@pytest.mark.integration
def test_the_packaged_backbones_are_counted_as_they_are() -> None:
    for name, config in PACKAGED.items():
        told = json.loads((pretrained_folder(name) / "config.json").read_text())
        for key, value in config.items():
            assert told.get(key, value) == value, (name, key)
    for name, packaged in (("LoRATuning", "smollm2-135m-instruct"), ("TokenClassification", "all-minilm-l6-v2")):
        assert getattr(recmodels, name)().backbone_name == packaged
    assert count_parameters("FullTuning", {}).trained == 134_515_008
    assert count_parameters("TokenClassification", {}).trained == 22_566_146


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
    told = {
        "model_type": "llama",
        "num_hidden_layers": 80,
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_attention_heads": 64,
    }
    (folder / "config.json").write_text(json.dumps(told | {"num_key_value_heads": 8, "vocab_size": 128256}))
    command = ["instructrec", "fit", "-c", "configs/model/full.yaml", f"--model.backbone={folder}"]
    line = forecasts({"a": command}, {})["a"]
    assert line.startswith("WILL NOT FIT in ")
    assert f"{machine_memory() / 2**30:.1f} GiB" in line
    assert line.endswith(", trains 70,553,706,496 parameters")  # as Llama-3-70B's card says: 70.6 billion


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
