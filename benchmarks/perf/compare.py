"""Runs comparisons: every side in its own process, turns interleaved, results compared before any time is believed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from benchmarks.perf.measure import Comparison, SideResult, Turn, Values, agreements, speed_up
from benchmarks.perf.setting import Precision, Setting
from benchmarks.perf.worker import Inline, Spawned

Say = Callable[[str], None]


def run_comparison(comparison: Comparison, setting: Setting, say: Say, *, one_process: bool) -> dict[str, Any]:
    """Measures one comparison.

    Args:
        comparison: the work and its sides.
        setting: of the run.
        say: told what happens.
        one_process: run all sides in this process, so that no memory of a side is known.

    Returns:
        What the JSON holds: each side's times, memory and configuration, speed-ups over each peer with their targets,
        and how far the sides' results are apart.

    Raises:
        DisagreementError: the sides computed different things.
        RuntimeError: a side failed.
    """
    workers: dict[str, Inline | Spawned] = {}
    try:
        say(f"{comparison.name}: loading {', '.join(comparison.sides)}")
        for name, make in comparison.sides.items():
            workers[name] = Inline(make, setting) if one_process else Spawned(make, setting)
        for name, worker in workers.items():
            worker.prepare()
            say(f"{comparison.name}: {name} is ready")
        turns: dict[str, list[Turn]] = {name: [] for name in workers}
        for repetition in range(setting.repetitions + 1):
            for name, worker in workers.items():
                turn = worker.turn(repetition)
                turns[name].append(turn)
                label = f"turn {repetition} of {setting.repetitions}" if repetition else "warm-up"
                say(f"{comparison.name}: {label}, {name} {turn.seconds:.2f} s")
        finished = {name: worker.finish() for name, worker in workers.items()}
    finally:
        for worker in workers.values():
            if isinstance(worker, Spawned):
                worker.stop()
    return judged(comparison, turns, finished, setting.precision)


def judged(
    comparison: Comparison,
    turns: dict[str, list[Turn]],
    finished: dict[str, tuple[Values, dict[str, int], dict[str, Any]]],
    precision: Precision = "bfloat16",
) -> dict[str, Any]:
    """Compares what the sides computed, then their times.

    Args:
        comparison: the work.
        turns: of each side, the one that warms up first.
        finished: what each side said at its end: values in float32, memory, configuration.
        precision: of the turns; those in float32 must agree as closely as float32 does.

    Raises:
        DisagreementError: a difference exceeds its tolerance.
    """
    first = {name: made[0].values for name, made in turns.items()}
    found = agreements(comparison.rules, first, precision, exact=precision == "float32")
    if precision != "float32":
        exact = {name: values for name, (values, _, _) in finished.items()}
        found += agreements(comparison.rules, exact, "float32", exact=True)
    for agreement in found:
        agreement.check()
    results = {
        name: SideResult([t.seconds for t in made[1:]], made[0].count, *finished[name][1:])
        for name, made in turns.items()
    }
    ours, *peers = results
    return {
        "title": comparison.title,
        "unit": comparison.unit,
        "ours": ours,
        "sides": {name: result.as_json() for name, result in results.items()},
        "speed_up": {
            peer: speed_up(results[ours], results[peer]) | {"target": comparison.targets[peer]} for peer in peers
        },
        "agreement": [asdict(agreement) for agreement in found],
    }
