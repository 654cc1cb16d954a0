"""A paper's table beside ours: expected, got, interval, verdict, and all that was done differently."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from benchmarks.analysis.rows import build_row
from benchmarks.analysis.runs import Run
from benchmarks.option_groups import without_groups
from benchmarks.reproduce.cards import Card, Cost, Published

Agreement = Literal["match", "within noise", "below", "above", "not comparable"]
CLOSE = 0.01
"""A number within this share of the published one reproduces it."""
SUSTAINED = 1.25e14
"""FLOP/s that costs are predicted with: 40 % of the bfloat16 peak of an A100."""


@dataclass(frozen=True)
class Outcome:
    """One published number and ours.

    Attributes:
        expected: the published one, None where there is none.
        got: mean over seeds, None where no run stands beside it.
        low: lower end of our 95 % interval over users or cases; NaN where it is not known.
        high: upper end.
        spread: standard deviation between seeds, None for fewer than two.
        reason: why it is not comparable.
    """

    method: str
    metric: str
    expected: float | None
    got: float | None
    low: float
    high: float
    seeds: int
    spread: float | None
    digits: int
    verdict: Agreement
    reason: str
    source: str
    certainty: str


def judge(expected: float, got: float, *, digits: int, noise: float) -> Agreement:
    """What a difference says; `noise` is half the width of its 95 % interval, NaN where that is not known.

    Example:
        >>> judge(0.6663, 0.67, digits=4, noise=0.004), judge(0.6663, 0.68, digits=4, noise=0.02)
        ('match', 'within noise')
        >>> judge(0.6663, 0.61, digits=4, noise=0.004)
        'below'
    """
    if round(got, digits) == round(expected, digits) or abs(got - expected) <= CLOSE * abs(expected):
        return "match"
    if abs(got - expected) <= noise:
        return "within noise"
    return "below" if got < expected else "above"


def compare(card: Card, size: str, runs: Sequence[Run]) -> list[Outcome]:
    """Every published number beside the runs of its cells.

    Example:
        >>> from benchmarks.reproduce.cards import load_card
        >>> found = compare(load_card("instructrec_games"), "small", [])
        >>> {outcome.verdict for outcome in found}
        {'not comparable'}
    """
    outcomes = []
    for number in card.numbers:
        beside = matching(number, runs)
        row = build_row(number.method, beside, list(number.metrics)) if beside else None
        for metric, expected in number.metrics.items():
            got = row.metrics.get(metric) if row else None
            low, high = row.intervals.get(metric, (math.nan, math.nan)) if row else (math.nan, math.nan)
            spread = seed_spread([run.metrics[metric] for run in beside if metric in run.metrics])
            reason = _reason(number, size, expected, got)
            verdict: Agreement = "not comparable"
            if not reason and expected is not None and got is not None:
                own = published_noise(metric, expected, number.cases)
                noise = math.hypot((high - low) / 2, 1.96 * (spread or 0.0), own)
                verdict = judge(expected, got, digits=number.digits[metric], noise=noise)
            outcomes.append(
                Outcome(
                    number.method,
                    metric,
                    expected,
                    got,
                    low,
                    high,
                    len(beside),
                    spread,
                    number.digits.get(metric, 4),
                    verdict,
                    reason,
                    number.source,
                    number.certainty,
                )
            )
    return outcomes


def matching(number: Published, runs: Sequence[Run]) -> list[Run]:
    """The finished runs of a row's cells, one a seed; none where the row names no cells."""
    wanted = {f"{axis}={label}" for axis, label in number.cells.items() if axis != "seed_everything"}
    return [run for run in runs if wanted and wanted <= set(run.settings)]


def seed_spread(values: Sequence[float]) -> float | None:
    """Standard deviation between seeds, None for fewer than two.

    Example:
        >>> seed_spread([1.0, 2.0, 3.0]), seed_spread([0.1])
        (1.0, None)
    """
    return statistics.stdev(values) if len(values) > 1 else None


def published_noise(metric: str, value: float, cases: int | None) -> float:
    """Half the 95 % interval that a published rate has of its own; 0 where its cases are ours.

    AUC by Hanley and McNeil 1982 (doi:10.1148/radiology.143.1.7063747) with classes of equal size.

    Example:
        >>> round(published_noise("hr@1", 0.364, 500), 3), round(published_noise("auc", 0.6724, 1000), 3)
        (0.042, 0.033)
    """
    if cases is None:
        return 0.0
    if metric != "auc":
        return 1.96 * math.sqrt(value * (1 - value) / cases)
    half, first, second = cases / 2, value / (2 - value), 2 * value**2 / (1 + value)
    variance = value * (1 - value) + (half - 1) * (first - value**2) + (half - 1) * (second - value**2)
    return 1.96 * math.sqrt(variance) / half


def _reason(number: Published, size: str, expected: float | None, got: float | None) -> str:
    reason = number.not_comparable.get(size) or number.not_comparable.get("all")
    if reason:
        return str(reason)
    if got is None:
        return "no finished run stands beside it" if number.cells else "not run here"
    return "" if expected is not None else "nothing was published"


def deviations(card: Card, runs: Sequence[Run]) -> list[str]:
    """What our finished runs did otherwise than the paper: counts, settings, and what the card tells.

    Example:
        >>> from benchmarks.reproduce.cards import load_card
        >>> card = load_card("instructrec_games")
        >>> deviations(card, []) == list(card.deviations)
        True
    """
    found: dict[str, None] = {}
    for run in runs:
        counts = run.description.get("statistics") or {}
        for key, value in card.data.items():
            if counts.get(key) not in (value, None):
                found[f"data: {key} is {counts[key]:,}, published {value:,}"] = None
        found |= dict.fromkeys(_unlike(card.settings, run, ""))
    for number in card.numbers:
        for run in matching(number, runs):
            found |= dict.fromkeys(_unlike(number.settings, run, f"{number.method}: "))
        if matching(number, runs):
            found |= dict.fromkeys(f"{number.method}: {text}" for text in number.deviations)
    return [*found, *card.deviations]


def _unlike(settings: Mapping[str, Any], run: Run, prefix: str) -> list[str]:
    unlike = []
    for key, theirs in settings.items():
        ours = setting(run.config, key)
        if ours is not None and ours != theirs:
            unlike.append(f"{prefix}{key} is {ours}, in the paper {theirs}")
    return unlike


def setting(config: Mapping[str, Any], key: str) -> Any:
    """A value of a resolved config by its dotted key, without the `init_args` between; None where it has none.

    Example:
        >>> setting({"model": {"class_path": "SASRec", "init_args": {"loss": "bce"}}}, "model.loss")
        'bce'
    """
    value: Any = config
    for part in key.split("."):
        if isinstance(value, dict) and part not in value:
            value = without_groups(value.get("init_args") or {})
        if not isinstance(value, dict):
            return None
        value = value.get(part)
    return value


def predicted(cost: Cost) -> str:
    """The predicted cost of a size, in a sentence that shows the arithmetic.

    Six FLOPs a parameter and token where all is trained, four where the backbone is frozen, two to evaluate.

    Example:
        >>> predicted(Cost(1e9, 1e6, 1e6, 2, 16))
        '1.4e+16 FLOPs (0.03 h at 1.2e+14 FLOP/s, 40 % of an A100), 15 GiB for weights, gradients and optimiser state'
    """
    trained = 6 if cost.bytes_per_parameter >= 12 else 4
    flops = cost.parameters * (trained * cost.tokens * cost.epochs + 2 * cost.evaluated_tokens)
    memory = cost.parameters * cost.bytes_per_parameter / 2**30
    hours = flops / SUSTAINED / 3600
    return (
        f"{flops:.1e} FLOPs ({hours:.2f} h at {SUSTAINED:.1e} FLOP/s, 40 % of an A100),"
        f" {memory:.0f} GiB for weights, gradients and optimiser state"
    )
