"""Every comparison by the name it has on the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from benchmarks.perf import scoring, training
from benchmarks.perf.compare import Say, run_comparison
from benchmarks.perf.limit import run_limit
from benchmarks.perf.loading import run_loading
from benchmarks.perf.measure import Comparison
from benchmarks.perf.peers import require_trl
from benchmarks.perf.setting import Setting


def comparisons(name: str, setting: Setting) -> list[Comparison]:
    """The comparisons of a name.

    Args:
        name: as on the command line, and neither `limit` nor `loading`.
        setting: of the run; a quick one ranks fewer candidates, because its data are small.
    """
    from benchmarks.perf import catalogue

    made: dict[str, Callable[[], list[Comparison]]] = {
        "score_20": lambda: [scoring.comparison("score_20", 20, target=8)],
        "score_100": lambda: [scoring.comparison("score_100", 25 if setting.quick else 100, target=15)],
        "train_8": lambda: [
            training.comparison("train_8_titles", "titles", "training, 8 titles after one history", 6, 6),
            training.comparison(
                "train_8_pointwise", "pointwise", "training, 8 yes/no questions after one history", 6, 6
            ),
            training.comparison("train_8_windows", "windows", "training, 8 successive targets, growing history", 6, 6),
        ],
        "train_1": lambda: [training.comparison("train_1", "single", "training, single target", 2, 1.8)],
        "catalogue": lambda: [catalogue.full_ranking()],
        "beam": lambda: [catalogue.beams()],
    }
    return made[name]()


def check_installed(names: Sequence[str]) -> None:
    """Refuses what needs packages that are not there, before anything is measured.

    Raises:
        InputError: TRL is missing.
    """
    if any(name.startswith("train") for name in names):
        require_trl()


def measures(
    names: Sequence[str], setting: Setting, say: Say, *, one_process: bool
) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """What is to be measured, each by its name, when called."""
    for name in names:
        if name == "limit":
            yield name, partial(run_limit, setting, say)
        elif name == "loading":
            yield name, partial(run_loading, setting, say)
        else:
            for each in comparisons(name, setting):
                yield each.name, partial(run_comparison, each, setting, say, one_process=one_process)
