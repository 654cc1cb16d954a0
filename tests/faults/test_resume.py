"""A run that is killed and continued is the run that was not: every step, the result, the logs."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import tally
from tests.faults.injected import POINTS
from tests.faults.trials import EPOCH, STEPS, VARIANTS, Runs, differences, steps_of, strayed
from tests.faults.warm import Warm


@pytest.fixture(scope="module")
def runs(data_root: Path, tiny_causal: Path, tiny_encoder: Path) -> Iterator[Runs]:
    warm = Warm({"INSTRUCTREC_DATA": str(data_root), "HF_HUB_OFFLINE": "1"})
    yield Runs(warm, tiny_causal, tiny_encoder)
    warm.close()


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
            survived += not strayed(trace, folder / "whole.trace")
        wrong += [f"before the kill at {point} {step}: {line}" for line in strayed(trace, folder / "whole.trace")]
    trace = folder / "last.trace"
    code = runs.warm.run(log, command, trace=str(trace))
    assert code == 0, log.read_text()[-3000:]
    wrong += strayed(trace, folder / "whole.trace") + differences(out, whole)
    survived += not wrong
    assert steps_of(trace)[-1]["step"] == STEPS
    return survived, wrong


SHORT = [("write_before_rename", 3), ("batch_end", EPOCH), ("validation", 15)]


@pytest.mark.parametrize("variant", ["lora", "token_classification"])
def test_three_kills_change_nothing(runs: Runs, tmp_path: Path, variant: str) -> None:
    survived, wrong = kill_and_continue(runs, tmp_path, variant, SHORT)
    assert not wrong
    assert survived == len(SHORT)


def twenty_five_points(seed: str) -> list[tuple[str, int]]:
    """20 random points, the first and last step of an epoch, a validation, two moments of a write; in time's order."""
    rng = random.Random(seed)
    anywhere = [point for point in POINTS if point != "validation" and not point.startswith(("write", "epoch"))]
    points = [(rng.choice(anywhere), rng.randrange(1, STEPS)) for _ in range(20)]
    points += [("epoch_start", EPOCH), ("epoch_end", 2 * EPOCH), ("validation", 10)]
    points += [(name, rng.randrange(1, STEPS - 4)) for name in rng.sample([p for p in POINTS if "write" in p], 2)]
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
