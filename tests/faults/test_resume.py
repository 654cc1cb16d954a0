"""A run that is killed and continued is the run that was not: every step, the result, the logs."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest
import yaml

import recmodels
from recmodels.baselines.closed_form import ClosedForm
from tests.benchmarks.commands.exported import run_of
from tests.faults import tally
from tests.faults.injected import POINTS
from tests.faults.trials import CONFIGS, EPOCH, STEPS, VARIANTS, Runs, differences, steps_of, strayed, trace_of


def kill_and_continue(
    runs: Runs, folder: Path, variant: str, points: list[tuple[str, int]], *extra: str
) -> tuple[int, list[str]]:
    """Kills one run at each point in turn, continues it after each, and lets it finish.

    Returns:
        Number of kills after which every step was as in the uninterrupted run, and what was not.
    """
    whole = runs.uninterrupted(variant, folder, *extra)
    out, log, survived, wrong = folder / "killed", folder / "killed.log", 0, []
    command = runs.command(variant, out, *extra, "--ckpt_path=last")
    for number, (point, step) in enumerate(points):
        trace = folder / f"{number}.trace"
        code = runs.warm.run(log, command, trace=str(trace), point=point, step=step)
        # The fit may be over before a point that only exists earlier; then nothing was killed.
        assert code == -signal.SIGKILL, f"{point} at {step}: exit code {code}\n{log.read_text()[-3000:]}"
        if number:
            survived += not strayed(trace, whole)
        wrong += [f"before the kill at {point} {step}: {line}" for line in strayed(trace, whole)]
    trace = folder / "last.trace"
    code = runs.warm.run(log, command, trace=str(trace))
    assert code == 0, log.read_text()[-3000:]
    wrong += strayed(trace, whole) + differences(out, whole)
    survived += not wrong
    assert steps_of(trace)[-1] == steps_of(trace_of(whole))[-1]
    return survived, wrong


def test_no_tuning_variant_is_left_out() -> None:
    configured = {
        yaml.safe_load((CONFIGS / "model" / f"{model}.yaml").read_text())["model"]["class_path"]
        for model, *_ in VARIANTS.values()
    }
    # Those that count all events in their only step have no steps to lose.
    trained = {name for name in recmodels.__all__ if getattr(recmodels, name).trains}
    assert {name for name in trained if not issubclass(getattr(recmodels, name), ClosedForm)} == configured


SHORT = [("write_before_rename", 3), ("batch_end", EPOCH), ("validation", 10), ("after_backward", 16)]


@pytest.mark.parametrize("variant", ["lora", "token_classification"])
def test_four_kills_change_nothing(runs: Runs, tmp_path: Path, variant: str) -> None:
    """Inside a write, at the end of an epoch, inside a validation, just after one."""
    survived, wrong = kill_and_continue(runs, tmp_path, variant, SHORT)
    assert not wrong
    assert survived == len(SHORT)


Points = list[tuple[str, int]]
SHAPES: dict[str, tuple[list[str], Points]] = {
    "length in epochs": (
        ["--trainer.max_steps=-1", "--trainer.max_epochs=3", "--trainer.check_val_every_n_epoch=1"],
        [("batch_end", 3), ("validation", 5), ("epoch_end", 6), ("validation", 11), ("batch_start", 12)],
    ),
    "accumulated gradients": (
        ["--trainer.max_steps=10", "--trainer.accumulate_grad_batches=2", "--trainer.val_check_interval=4"],
        [("after_backward", 2), ("batch_end", 3), ("validation", 4), ("epoch_end", 6), ("batch_start", 8)],
    ),
    "validation at the end of an epoch": (
        ["--trainer.val_check_interval=6", "--resume.every_n_steps=6"],
        [("batch_end", 6), ("epoch_end", 6), ("validation", 12), ("epoch_start", 12), ("batch_end", 17)],
    ),
    "saves after validations": (
        ["--resume.every_n_steps=null"],
        [("batch_end", 6), ("validation", 10), ("batch_start", 10), ("epoch_end", 12), ("batch_end", 17)],
    ),
    "early stopping": (
        [
            *("-c", str(CONFIGS / "callbacks" / "early_stopping.yaml"), "--trainer.val_check_interval=2"),
            *("--model.optimizer=SGD", "--model.optimizer.lr=1e-12"),
        ],
        [("batch_end", 4), ("validation", 4), ("validation", 6), ("before_zero_grad", 6), ("batch_end", 7)],
    ),
}


@pytest.mark.faults
@pytest.mark.parametrize("shape", SHAPES)
def test_kills_change_nothing_in_other_shapes_of_a_run(runs: Runs, tmp_path: Path, shape: str) -> None:
    options, points = SHAPES[shape]
    survived, wrong = kill_and_continue(runs, tmp_path, "lora", points, *options)
    tally.add(f"kill -9, {shape}", len(points), survived)
    assert not wrong
    assert survived == len(points)


@pytest.mark.faults
def test_kills_change_nothing_in_a_run_that_stands_on_another(runs: Runs, tmp_path: Path) -> None:
    run_of("AdapterTuning", runs.causal, tmp_path / "first", bottleneck=2)
    options = [f"--model.stack_on={tmp_path / 'first'}", "--trainer.precision=32-true"]
    survived, wrong = kill_and_continue(runs, tmp_path, "adapter", SHORT, *options)
    tally.add("kill -9, stacked adapters", len(SHORT), survived)
    assert not wrong
    assert survived == len(SHORT)


def twenty_five_points(seed: str) -> list[tuple[str, int]]:
    """20 random points, the first and last step of an epoch, a validation, two moments of a write; in time's order."""
    rng = random.Random(seed)
    anywhere = [point for point in POINTS if point != "validation" and not point.startswith(("write", "epoch"))]
    points = [(rng.choice(anywhere), rng.randrange(1, STEPS)) for _ in range(20)]
    points += [("epoch_start", EPOCH), ("epoch_end", 2 * EPOCH), ("validation", 10)]
    # Early enough that a save is still to come, wherever the kills before have left the run.
    points += [(name, rng.randrange(1, STEPS // 2)) for name in rng.sample([p for p in POINTS if "write" in p], 2)]
    return sorted(points, key=lambda one: (one[1], POINTS.index(one[0])))


@pytest.mark.faults
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("variant", VARIANTS)
def test_twenty_five_kills_change_nothing(runs: Runs, tmp_path: Path, variant: str, workers: int) -> None:
    points = twenty_five_points(f"{variant}{workers}")
    survived, wrong = kill_and_continue(runs, tmp_path, variant, points, f"--data.num_workers={workers}")
    tally.add(f"kill -9, {variant}, {workers} loader workers", len(points), survived)
    assert not wrong
    assert survived == len(points)
