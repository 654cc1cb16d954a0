"""Optuna's samplers and pruners as functions of what is known; nothing is kept between two calls."""

from __future__ import annotations

import importlib.util
import json
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.grid.search_space import Parameter, Search, number, written
from benchmarks.metric_names import higher_is_better
from datamodules.contract.errors import InputError

__all__ = ["check_installed", "prunes", "suggest"]

DIGITS = 4
"""Significant digits of a proposed number: commands stay readable."""


def suggest(
    search: Search, space: Mapping[str, Parameter], before: Sequence[Mapping[str, Any]], seed: int
) -> dict[str, str]:
    """What to try next, as a command line takes it.

    The tree-structured Parzen estimator (Bergstra et al. 2011) draws at random for the first half of the trials.

    Example:
        >>> search = Search(4, {"model.r": Parameter(low=1, high=64, log=True, whole=True)}, sampler="random")
        >>> 1 <= int(suggest(search, search.parameters, [], 0)["model.r"]) <= 64
        True
    """
    optuna = _optuna()
    sampler: Any
    if search.sampler == "random":
        sampler = optuna.samplers.RandomSampler(seed=seed)
    else:
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=max(2, search.trials // 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what optuna still calls experimental
        study = _study(search.metric, sampler)
        distributions = {name: _distribution(parameter) for name, parameter in space.items()}
        for trial in before:
            study.add_trial(_frozen(trial, space, distributions))
        params = study.ask(distributions).params
    return {name: _written(params[name], parameter) for name, parameter in space.items()}


def prunes(
    pruner: str, metric: str, rivals: Sequence[Sequence[Sequence[float]]], measured: Sequence[Sequence[float]]
) -> bool:
    """Whether a trial is given up: its best value so far is worse than the median of its rivals at that step.

    Example:
        >>> rivals = [[(10, 0.5), (20, 0.6)], [(10, 0.4), (20, 0.7)]]
        >>> prunes("median", "val/quality", rivals, [(10, 0.1)]), prunes("median", "val/quality", rivals, [(10, 0.6)])
        (True, False)
    """
    if pruner == "none" or not measured:
        return False
    optuna = _optuna()
    study = _study(metric, None)
    for points in rivals:
        if points:
            study.add_trial(optuna.trial.create_trial(value=points[-1][1], intermediate_values=_by_step(points)))
    trial = optuna.trial.create_trial(state=optuna.trial.TrialState.RUNNING, intermediate_values=_by_step(measured))
    return bool(optuna.pruners.MedianPruner(n_startup_trials=2, n_warmup_steps=0).prune(study, trial))


def check_installed(search: Search) -> None:
    """Refuses a search that needs Optuna where it is not installed.

    Example:
        >>> check_installed(Search(2, {"model.r": Parameter(choices=(4, 8))}, sampler="grid", pruner="none"))
    """
    if (search.sampler != "grid" or search.pruner != "none") and importlib.util.find_spec("optuna") is None:
        raise InputError("a search needs optuna, which is not installed: pip install 'instructrec[search]'")


def _optuna() -> Any:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _study(metric: str, sampler: Any) -> Any:
    return _optuna().create_study(direction="maximize" if higher_is_better(metric) else "minimize", sampler=sampler)


def _by_step(points: Sequence[Sequence[float]]) -> dict[int, float]:
    return {int(step): float(value) for step, value in points}


def _distribution(parameter: Parameter) -> Any:
    distributions = _optuna().distributions
    if parameter.choices:
        return distributions.CategoricalDistribution([json.dumps(choice) for choice in parameter.choices])
    if parameter.whole:
        return distributions.IntDistribution(int(parameter.low), int(parameter.high), log=parameter.log)
    return distributions.FloatDistribution(parameter.low, parameter.high, log=parameter.log)


def _frozen(trial: Mapping[str, Any], space: Mapping[str, Parameter], distributions: Mapping[str, Any]) -> Any:
    optuna = _optuna()
    states = optuna.trial.TrialState
    state = {"completed": states.COMPLETE, "pruned": states.PRUNED, "failed": states.FAIL}[trial["state"]]
    params = {name: _read(trial["parameters"][name], parameter) for name, parameter in space.items()}
    return optuna.trial.create_trial(
        state=state,
        params=params,
        distributions=dict(distributions),
        value=None if state == states.FAIL else trial["value"],
        intermediate_values=_by_step(trial["values"]),
    )


def _written(value: Any, parameter: Parameter) -> str:
    if parameter.choices:
        return written(json.loads(value))
    short = float(f"{value:.{DIGITS}g}") if not parameter.whole else float(value)
    return number(min(max(short, parameter.low), parameter.high))


def _read(text: str, parameter: Parameter) -> Any:
    if parameter.choices:
        return next(json.dumps(choice) for choice in parameter.choices if written(choice) == text)
    return int(text) if parameter.whole else float(text)
