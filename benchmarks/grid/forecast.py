"""What a cell will take on a CPU: peak memory and time, from its model's parameters and the number of tokens.

The constants below were chosen on the committed quickstart run. Cells of the same folder that have finished correct the
time.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
import yaml

from benchmarks.grid.parameters import Counts, count_parameters
from benchmarks.option_groups import without_groups
from benchmarks.paths import located
from benchmarks.plain_yaml import read_yaml
from datamodules.contract.errors import InputError

# What a cell's command configures, read without torch: its YAML overlays one over another, then its options.


def cell_config(command: Sequence[str]) -> dict[str, Any]:
    """The config that a command asks for, defaults of classes not filled in.

    A later file that names another class takes the place of the earlier one's options, as on the command line.

    Example:
        >>> made = cell_config(["instructrec", "fit", "-c", "configs/model/lora.yaml", "--model.r=4", "--name", "x"])
        >>> made["model"]["class_path"], made["model"]["init_args"]["r"]
        ('LoRATuning', 4)
    """
    config: dict[str, Any] = {}
    files = ["configs/trainer/default.yaml", *(name for word, name in _pairs(command) if word == "-c")]
    for name in files:
        content, _ = read_yaml(located(name))
        _merge(config, content if isinstance(content, dict) else {})
    for word in command:
        key, given, text = word.removeprefix("--").partition("=")
        if word.startswith("--") and given:
            _place(config, key.rstrip("+").split("."), _value(text))
    return config


def options(config: Mapping[str, Any], part: str) -> dict[str, Any]:
    """The options of a part's class; empty where it has none.

    Example:
        >>> options({"model": {"class_path": "LoRATuning", "init_args": {"r": 4}}}, "model")
        {'r': 4}
    """
    value = config.get(part)
    init_args = value.get("init_args") if isinstance(value, dict) else None
    return without_groups(init_args) if isinstance(init_args, dict) else {}


def class_of(config: Mapping[str, Any], part: str) -> str:
    """The last part of a part's class name; "" where none is named.

    Example:
        >>> class_of({"model": {"class_path": "recmodels.methods.lora.LoRATuning"}}, "model")
        'LoRATuning'
    """
    value = config.get(part)
    path = value.get("class_path") if isinstance(value, dict) else value
    return str(path or "").rpartition(".")[2]


def _pairs(command: Sequence[str]) -> list[tuple[str, str]]:
    return list(itertools.pairwise(command))


def _merge(into: dict[str, Any], other: Mapping[str, Any]) -> None:
    if into.get("class_path") and other.get("class_path") not in (None, into["class_path"]):
        into.clear()
    for key, value in other.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        elif isinstance(value, dict):
            into[key] = {}
            _merge(into[key], value)
        else:
            into[key] = value


def _place(into: dict[str, Any], path: list[str], value: Any) -> None:
    """Sets a dotted option; one of a class stands among its `init_args`, which the command line leaves out."""
    for number, key in enumerate(path[:-1]):
        into = into[key] if isinstance(into.get(key), dict) else into.setdefault(key, {})
        following = path[number + 1]
        of_a_class = "class_path" in into or (number == 0 and key in ("model", "data"))
        if of_a_class and following not in ("class_path", "init_args"):
            into = into.setdefault("init_args", {})
    into[path[-1]] = value


def _value(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{text[:80]!r} is not readable as a value") from error


BASE_BYTES = 5.4e8  # of a process that has imported everything and read a small data set
TITLE, TEMPLATE, SUFFIX = 4, 25, 8  # tokens of a film's title, of the template, and of the question after a history
COPIES = 7  # of what trains: gradient, two moments, and what guard and checkpoint keep
FLOATS = 1.65  # numbers kept for backward, as a multiple of the matrices' inputs and outputs
ENCODER_FLOATS = 5.0  # an encoder's dropouts keep their masks, and its attention its weights
EFFICIENCY, TEST_EFFICIENCY = 0.55, 0.9  # of the machine's matrix rate that training and scoring reach
STARTING = 3.0  # seconds
CLASSICAL = ("BM25", "EASE", "ItemKNN", "Popularity", "PureSVD", "Random")


@dataclass(frozen=True)
class Forecast:
    """What a cell is expected to take, or why that is not known."""

    memory_bytes: float = 0.0
    seconds: float = 0.0
    trained: int = 0
    unknown: str = ""


def forecast(config: Mapping[str, Any], rate: float) -> Forecast:
    """Predicts a cell.

    Example:
        >>> config = {"model": {"class_path": "ZeroShot"}, "data": {"init_args": {"protocol": {"test_users": 200}}}}
        >>> made = forecast(config, 4e11)
        >>> made.trained, round(made.memory_bytes / 2**30, 1)
        (0, 1.5)
        >>> forecast({}, 4e11).unknown
        'no model is named'
    """
    name = class_of(config, "model")
    if not name:
        return Forecast(unknown="no model is named")
    if str(_part(config, "trainer").get("accelerator", "auto")) not in ("auto", "cpu"):
        return Forecast(unknown="only runs on a CPU are predicted")
    if name in CLASSICAL:
        return Forecast(BASE_BYTES, 1.0)
    try:
        counts = count_parameters(name, options(config, "model"))
    except InputError as error:
        return Forecast(unknown=str(error))
    trained = counts.trained
    step, steps, tested = _tokens(config, trained > 0)
    weights = 4.0 * counts.total
    # Loading holds the weights twice; then the second half is room for what training keeps.
    training = COPIES * 4.0 * trained + (_activations(counts, step) if trained else 0.0)
    memory = BASE_BYTES + weights + max(weights, training)
    # Forward and the gradient of what flows back: two products each; that of the weights where they train.
    train = step * steps * (4 * counts.matrices + 2 * min(trained, counts.matrices))
    scored = 2 * counts.matrices * tested / (TEST_EFFICIENCY * rate)
    return Forecast(memory, STARTING + train / (EFFICIENCY * rate) + scored, trained)


def _part(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = config.get(name)
    return value if isinstance(value, dict) else {}


def _tokens(config: Mapping[str, Any], trains: bool) -> tuple[float, int, float]:
    """Tokens of a step, steps, and tokens of the test and all validations."""
    data, trainer = options(config, "data"), _part(config, "trainer")
    protocol = _part(data, "protocol")
    protocol = protocol.get("init_args", protocol)
    allowed, users = int(protocol.get("history") or 10), int(protocol.get("test_users") or 943)
    history, dense = int(data.get("train_history") or allowed), data.get("paraphrase") == "dense"
    targets = int(data.get("targets_per_window") or min(history, 100 if dense else 10))
    title, answer = (1, 0) if class_of(data, "items") == "Token" else (TITLE, TITLE)
    lists = (int(protocol.get("negatives") or 19) + 1) * (1 + len(protocol.get("also") or ()))
    case = TEMPLATE + SUFFIX + title * int(data.get("shown_history") or allowed) + answer * lists
    # A causal model reads a history once for all its targets, an encoder every case by itself.
    window = TEMPLATE + title * history + targets * (SUFFIX + 2 * title)
    if dense:
        window = title * history
    elif class_of(config, "model") == "TokenClassification":
        window = targets * case
    steps = int(trainer.get("max_steps") or 0) if trains else 0
    accumulated = int(trainer.get("accumulate_grad_batches") or 1)
    every = int(trainer.get("val_check_interval") or 0) or steps
    validations = steps // max(1, every)
    tested = case * (users + validations * int(protocol.get("validation_users") or users))
    return window * int(data.get("batch_size") or 4), steps * accumulated, tested


def _activations(counts: Counts, tokens: float) -> float:
    """Bytes kept for backward: inputs and outputs of every matrix, and the logits of the answers' tokens."""
    floats = FLOATS if counts.vocabulary else ENCODER_FLOATS
    return 4.0 * tokens * (floats * counts.widths + 0.27 * 3 * counts.vocabulary)


@cache
def matrix_rate() -> float:
    """Multiplications and additions a second in a product of two float32 matrices, measured in a fraction of a second."""
    size = 768
    left = np.ones((size, size), dtype=np.float32)
    best = min(_timed(left) for _ in range(4))
    return 2.0 * size**3 / best


def _timed(matrix: Any) -> float:
    started = time.perf_counter()
    _ = matrix @ matrix
    return max(time.perf_counter() - started, 1e-9)


def time_correction(measured: Sequence[tuple[float, float]]) -> float:
    """How many times longer finished cells took than was predicted, of pairs (predicted, actual); 1 without any.

    Example:
        >>> time_correction([(10.0, 20.0), (10.0, 40.0), (10.0, 30.0)]), time_correction([])
        (3.0, 1.0)
    """
    return float(median(actual / predicted for predicted, actual in measured if predicted > 0)) if measured else 1.0


def forecasts(commands: Mapping[str, Sequence[str]], records: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """A line on each cell: what it is expected to take, with a flag where that is more than the machine has.

    Example:
        >>> print(forecasts({"a": ["instructrec", "fit", "-c", "configs/model/popularity.yaml"]}, {})["a"])
        about 0.5 GiB, 1 s
    """
    predicted = {name: forecast(cell_config(command), matrix_rate()) for name, command in commands.items()}
    measured = {name: _taken(record) for name, record in records.items()}
    pairs = [
        (predicted[name].seconds, seconds) for name, seconds in measured.items() if seconds and predicted[name].trained
    ]
    factor, room = time_correction(pairs), machine_memory()
    return {name: _line(prediction, factor, room) for name, prediction in predicted.items()}


def rate_note(corrected: bool) -> str:
    """What the predicted times rest on.

    Example:
        >>> rate_note(corrected=True)
        'times: by counting, corrected by the finished cells'
    """
    if corrected:
        return "times: by counting, corrected by the finished cells"
    return (
        f"times: by counting, at this machine's float32 rate of {matrix_rate() / 1e9:.0f} GFLOP/s just now; bfloat16"
        " hardware can be ten times as fast, and the first finished cell corrects them"
    )


def machine_memory() -> float:
    """Bytes that a process may have here: the machine's, or less where a control group says so.

    Example:
        >>> machine_memory() > 2**28
        True
    """
    limits = [float(psutil.virtual_memory().total)]
    with suppress(OSError, ValueError):  # "max" is not a number
        limits.append(float(Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf-8")))
    return min(limits)


def _taken(record: Mapping[str, Any]) -> float:
    costs = _part(record, "costs")
    seconds = [costs.get(key) for key in ("train_seconds", "validation_seconds", "test_seconds")]
    return float(sum(value for value in seconds if isinstance(value, int | float)))


def _line(prediction: Forecast, factor: float, room: float) -> str:
    if prediction.unknown:
        return f"not predicted: {prediction.unknown}"
    seconds = prediction.seconds * (factor if prediction.trained else 1.0)
    long = (
        f"{seconds / 3600:.1f} h"
        if seconds >= 5400
        else f"{seconds / 60:.0f} min"
        if seconds >= 90
        else f"{seconds:.0f} s"
    )
    trained = f", trains {prediction.trained:,} parameters" if prediction.trained else ""
    text = f"about {prediction.memory_bytes / 2**30:.1f} GiB, {long}{trained}"
    return f"WILL NOT FIT in {room / 2**30:.1f} GiB: {text}" if prediction.memory_bytes > 0.95 * room else text
