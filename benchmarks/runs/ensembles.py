"""Several finished runs as one row: their stored scores put together, without a model.

# M members, U cases, B entries of all lists
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torchmetrics import Metric

from benchmarks.analysis.exposure import centred_ranks
from benchmarks.analysis.runs import Run, read_json, read_run
from benchmarks.analysis.scores import RunFailed
from benchmarks.analysis.significance import paired_bootstrap
from benchmarks.paths import further_rules, record_path, scores_path
from benchmarks.runs.folder import checkout_state, installed_versions, metric_arrays, write_arrays, write_json
from datamodules.contract.errors import InputError
from datamodules.contract.files import sha256_of
from recmodels.base import CaseScores, measure_cases, quality_of
from recmodels.metrics.binary import BinaryMetrics
from recmodels.metrics.ranking import RankingMetrics
from recmodels.metrics.rating import RatingMetrics

Floats = NDArray[np.floating[Any]]
By = Literal["scores", "ranks", "probabilities"]
ANSWERS = {"ranking": "candidates", "binary": "fixed", "rating": "ratings"}
SAME = ("user", "case_start", "item", "relevance", "candidates", "total_relevant")
"""What members must have stored alike."""
SUMMED = (
    "total_parameters",
    "trainable_parameters",
    "train_seconds",
    "train_targets",
    "train_flops",
    "latency_seconds",
    "checkpoint_bytes",
)
"""Costs that are those of all members together."""


@dataclass(frozen=True)
class Member:
    """A finished run, with the arrays of its `scores.npz`."""

    folder: Path
    run: Run
    arrays: dict[str, NDArray[Any]]


def write_ensemble(folders: Sequence[Path], out: Path, by: By | None, name: str) -> dict[str, Any]:
    """Writes the record and the scores of an ensemble, under each rule of candidates that all members were tested under.

    Args:
        folders: of the runs.
        out: its own folder.
        by: what is averaged; null takes ranks, or probabilities where answers are Yes and No or ratings.
        name: of its row.

    Returns:
        The record.

    Raises:
        InputError: fewer than two runs, one without a result, or runs whose scores are not of the same lists.
    """
    if len(folders) < 2 or len({folder.resolve() for folder in folders}) < len(folders):
        raise InputError("an ensemble is of two or more different runs; name their folders")
    also = [set(further_rules(read_json(record_path(folder)))) for folder in folders if record_path(folder).is_file()]
    rules = sorted(set.intersection(*also)) if len(also) == len(folders) else []
    records = {rule: _write(folders, out, by, name, rule) for rule in [*rules, ""]}
    record = records[""] | ({"also": rules} if rules else {})
    write_json(record_path(out), record)
    return record


def _write(folders: Sequence[Path], out: Path, by: By | None, name: str, rule: str) -> dict[str, Any]:
    members = [read_member(folder, rule) for folder in folders]
    check_members(members)
    first = members[0]
    chosen: By = by or ("ranks" if first.run.task == "ranking" else "probabilities")
    if chosen == "ranks" and first.run.task != "ranking":
        raise InputError(
            f"--by ranks puts lists together, and these runs are of task {first.run.task}; use probabilities"
        )
    whole = combined(members, chosen)
    arrays, metrics = measured(first, whole)
    told = [told_of(member, members, chosen, arrays, metrics) for member in members]
    out.mkdir(parents=True, exist_ok=True)
    facts = {key: value for key, value in first.arrays.items() if key not in (*arrays, "blank_score")}
    write_arrays(scores_path(out, rule), facts | arrays | {"score": whole})
    backbones = {member.run.backbone for member in members}
    kinds = {member.run.kind for member in members}
    costs = {key: [member.run.costs[key] for member in members if key in member.run.costs] for key in SUMMED}
    original = read_json(record_path(first.folder, rule))
    record = {
        "format": 1,
        "name": name,
        "cell": out.name,
        "kind": "tuned" if "tuned" in kinds else "reference",
        "model": {"class": "Ensemble", "backbone": backbones.pop() if len(backbones) == 1 else None},
        "data": original["data"],
        "seed": None,
        "config": {"ensemble": {"by": chosen, "members": told}},
        "versions": installed_versions(),
        **checkout_state(),
        "status": "finished",
        "error": None,
        **({"rule": rule} if rule else {}),
        "scores_sha256": sha256_of(scores_path(out, rule)),
        "protocol": original["protocol"],
        "metrics": {f"test/{key}": value for key, value in metrics.items()},
        "guards": {},
        "costs": {key: sum(values) for key, values in costs.items() if len(values) == len(members)},
        "samples": [],
    }
    if rule:
        write_json(record_path(out, rule), record)
    return record


def read_member(folder: Path, rule: str = "") -> Member:
    """Reads a run, whose record and scores must agree.

    Raises:
        InputError: it has no result, or stored no scores.
    """
    try:
        run = read_run(folder, rule)
    except (RunFailed, InputError) as error:
        raise InputError(f"{folder}: {error}") from error
    if run.scores is None:
        raise InputError(f"{folder}: it has stored no scores")
    with scores_path(folder, rule).open("rb") as file, np.load(file, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    missing = [name for name in (*SAME, "score") if name not in arrays]
    if missing:
        raise InputError(f"{folder}: it has stored no {missing[0]}")
    return Member(folder, run, arrays)


def check_members(members: Sequence[Member]) -> None:
    """Refuses members whose scores are not of the same whole lists.

    Raises:
        InputError: another protocol, other lists, or lists of which only the best were stored.
    """
    first = members[0]
    for member in members:
        if member.run.fingerprint != first.run.fingerprint or member.run.task != first.run.task:
            raise InputError(
                f"{member.folder}: its protocol is {member.run.fingerprint[:12]}, and that of {first.folder}"
                f" {first.run.fingerprint[:12]}; an ensemble is of runs of one table"
            )
        if (np.diff(member.arrays["case_start"]) < member.arrays["candidates"]).any():
            raise InputError(f"{member.folder}: it has stored the best of each list only, so that no sum is exact")
        for name in SAME:
            if not np.array_equal(member.arrays[name], first.arrays[name]):
                raise InputError(f"{member.folder}: its lists are others than those of {first.folder} ({name} differs)")


def combined(members: Sequence[Member], by: By) -> NDArray[np.float32]:
    """Returns the scores `[B]` of members together: means of their scores, of ranks in lists, or of probabilities.

    Probabilities are the softmax of a list's scores; the logarithm of their mean is the score.
    """
    start = members[0].arrays["case_start"]
    scores = np.stack([member.arrays["score"].astype(np.float64) for member in members])
    owner = np.repeat(np.arange(len(start) - 1), np.diff(start))
    if by == "ranks":
        scores = np.stack([centred_ranks(each, owner, start) for each in scores])
    if by == "probabilities":
        shares = scores - np.maximum.reduceat(scores, start[:-1], axis=1)[:, owner]
        total = np.stack([np.bincount(owner, weights=np.exp(each)) for each in shares])
        mean: NDArray[np.float64] = np.logaddexp.reduce(shares - np.log(total)[:, owner], axis=0) - np.log(len(members))
        return mean.astype(np.float32)
    whole: NDArray[np.float32] = scores.mean(0).astype(np.float32)
    return whole


def measured(member: Member, score: NDArray[np.float32]) -> tuple[dict[str, NDArray[Any]], dict[str, float]]:
    """Returns metrics case by case, and over all, of other scores for a member's lists."""
    names = (name for name in member.arrays if name.startswith("hr@"))
    cutoffs = tuple(sorted(int(name.removeprefix("hr@")) for name in names)) or (1,)
    columns = {name: torch.from_numpy(member.arrays[name]) for name in SAME if name != "user"}
    columns["score"] = torch.from_numpy(score)
    answers, start = ANSWERS[member.run.task], columns["case_start"]
    owner = torch.repeat_interleave(torch.arange(len(start) - 1), start.diff())
    cases = CaseScores(
        case=torch.arange(len(start) - 1),
        branch_case=owner,
        branch_item=columns["item"],
        score=columns["score"],
        relevance=columns["relevance"],
        candidates=columns["candidates"],
        total_relevant=columns["total_relevant"],
        answers=answers,
        tokens=0,
    )
    ranking, binary, rating = RankingMetrics(cutoffs), BinaryMetrics(), RatingMetrics()
    measure_cases(cases, ranking, binary, rating)
    metric: Metric = {"candidates": ranking, "fixed": binary, "ratings": rating}[answers]
    values: dict[str, torch.Tensor] = metric.compute()
    overall = {name: float(value) for name, value in values.items()} | {"quality": float(quality_of(values))}
    return metric_arrays(answers, columns, cutoffs), overall


def told_of(
    member: Member,
    members: Sequence[Member],
    by: By,
    arrays: dict[str, NDArray[Any]],
    metrics: dict[str, float],
) -> dict[str, Any]:
    """What the record says of a member: what it is, and what the ensemble gains by it (leave one out)."""
    others = [other for other in members if other is not member]
    without_arrays, without = measured(member, combined(others, by))
    told: dict[str, Any] = {
        "run": member.folder.resolve().name,
        "name": member.run.name,
        "seed": member.run.seed,
        "scores_sha256": sha256_of(scores_path(member.folder, member.run.rule)),
        "quality": member.run.metrics.get("quality"),
        "gain": metrics["quality"] - without["quality"],
    }
    deepest = max((int(name[5:]) for name in arrays if name.startswith("ndcg@")), default=0)
    compared = f"ndcg@{deepest}" if deepest else "mrr"
    if compared in arrays:
        told["p"] = paired_bootstrap(arrays[compared], without_arrays[compared]).p_value
    return told


CHOICES: tuple[str, ...] = get_args(By)
