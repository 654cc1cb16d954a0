"""Options of a data set's groups, written without the group: as configs, suites and commands did before there were any."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

import datamodules
from benchmarks.cli.app import build
from benchmarks.option_groups import GROUPS, group_of, spell_out, spell_out_words, without_groups
from benchmarks.reproduce.verdicts import setting
from benchmarks.runs.resuming import settings_of
from datamodules.contract.errors import InputError

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.filterwarnings("ignore")  # of jsonargparse, about settings that are to come
VALUES: dict[str, Any] = {
    "preference": "implicit",
    "intention": "specific",
    "language": "zh",
    "paraphrase": 2,
    "template": "P1,I2,T2.zh.2",
    "mixture": {"P1,I0,T3": 2.0, "thought_from_history": 1.0},
    "temperature": 2.0,
    "shown_history": 4,
    "targets_per_window": 3,
    "window_history": "shared",
    "train_negatives": 4,
    "train_history": 6,
    "eval_batch_size": 3,
    "row_tokens": 77,
    "num_workers": 1,
}


def text_of(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def data_of(*arguments: str) -> dict[str, Any]:
    """The data set's options after the parse."""
    command = ["fit", "-c", str(ROOT / "configs/model/zero_shot.yaml"), *arguments]
    options: dict[str, Any] = build(command).config["fit"]["data"].as_dict()["init_args"]
    return options


def test_every_option_of_a_group_has_a_value_here_and_no_other_meaning() -> None:
    assert group_of().keys() == VALUES.keys()
    for name in datamodules.__all__:
        parameters = inspect.signature(getattr(datamodules, name).__init__).parameters
        assert not group_of().keys() & parameters.keys()


@pytest.fixture(scope="module")
def spelt_out() -> dict[str, Any]:
    """With every option below its group."""
    words = [f"--data.{group_of()[name]}.{name}={text_of(value)}" for name, value in VALUES.items()]
    return data_of("-c", str(ROOT / "configs/data/ml_100k.yaml"), *words)


def test_options_without_their_group_mean_the_same_on_the_command_line(spelt_out: dict[str, Any]) -> None:
    for form in ("--data.{}={}", "--data.init_args.{}={}", "--data.{} {}"):
        words = [form.format(name, text_of(value)) for name, value in VALUES.items()]
        words = [part for word in words for part in (word.split(" ", 1) if "=" not in form else [word])]
        assert data_of("-c", str(ROOT / "configs/data/ml_100k.yaml"), *words) == spelt_out
    assert {name: spelt_out[group_of()[name]][name] for name in VALUES} == VALUES


def test_and_in_config_files_one_of_which_overrides_another(spelt_out: dict[str, Any], tmp_path: Path) -> None:
    first, second, data = (tmp_path / name for name in ("first.yaml", "second.yaml", "data.yaml"))
    stale = VALUES | {"row_tokens": 5, "language": "en", "intention": "none"}
    first.write_text(yaml.safe_dump({"data": {"class_path": "MovieLens100K", "init_args": stale}}))
    second.write_text(yaml.safe_dump({"data": {"row_tokens": 77, "prompts": {"language": "zh"}}}))
    last = "--data.intention=specific"
    assert data_of("-c", str(first), "-c", str(second), last) == spelt_out
    data.write_text(yaml.safe_dump({"class_path": "datamodules.MovieLens100K", "init_args": VALUES}))
    assert data_of("--data", str(data)) == spelt_out


def test_what_is_given_twice_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "twice.yaml"
    file.write_text("data: {class_path: MovieLens100K, init_args: {num_workers: 1, loader: {num_workers: 2}}}")
    with pytest.raises(InputError, match=r"data\.num_workers and data\.loader both say it; keep one"):
        data_of("-c", str(file))


def test_other_options_and_other_peoples_mappings_stay_as_they_are() -> None:
    words = ["fit", "--data.cell=P1,I0,T3", "--model.template=x", "--data.templates=x", "-c", "x.yaml"]
    assert spell_out_words(words) == words
    content = {"model": {"class_path": "LoRATuning", "init_args": {"template": 1}}, "template": 2}
    assert spell_out(content) == content
    assert spell_out({"fit": {"data": {"template": "x"}}}) == {"fit": {"data": {"prompts": {"template": "x"}}}}


def test_runs_recorded_before_there_were_groups_read_as_those_after() -> None:
    """A published record is parsed by today's command line; readers of both find the same settings in both."""
    [path, *_] = sorted((ROOT / "benchmarks/records/reproduce/tallrec_movie/runs").glob("*/record.json"))
    old: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["config"]["data"]
    linked = ("backbone", "batch_format", "objective", "shots", "seed")
    given = {key: value for key, value in old["init_args"].items() if key not in linked}
    yes_no = ("--model.objective", "yes_no")
    new = data_of(*yes_no, "--data", json.dumps({"class_path": "datamodules.TALLRecMovie", "init_args": given}))

    assert set(GROUPS) < new.keys()
    shown = {key: without_groups(new)[key] for key in given}
    rules = shown.pop("protocol")  # which has options that are newer than the record
    assert shown == {key: value for key, value in given.items() if key != "protocol"}
    assert rules | given["protocol"] == rules
    for name in ("targets_per_window", "template", "row_tokens"):
        configs = [{"data": {"class_path": "x", "init_args": options}} for options in (given, new)]
        assert setting(configs[0], f"data.{name}") == setting(configs[1], f"data.{name}") == given[name]
        key = f"data.init_args.{name}"
        assert settings_of(configs[0])[key] == settings_of(configs[1])[key]
