"""Where Lightning's training loop stands, in a form from which it starts again at exactly that place.

Lightning 2.6 restarts rightly from counters that all agree, and then passes over a validation that the last step was
due for. Counters in the middle of a batch it gets wrong in several ways (a batch counted twice, a validation lost,
logs one step off), so what is saved says that the batch under way has not begun.
"""

from __future__ import annotations

import copy
from typing import Any

import lightning as L

BATCH, VALIDATION = "epoch_loop.batch_progress", "epoch_loop.val_loop.batch_progress"
COUNTERS = ("ready", "started", "processed", "completed")


def before_batch(trainer: L.Trainer) -> dict[str, Any]:
    """Progress just before a fetched batch trains.

    Returns:
        `fit_loop`, from which Lightning starts again; `there`, the counters as they must then be; `stepped`, the step
        that loggers count; `validation_due`, false.
    """
    there = trainer.fit_loop.state_dict()
    fit_loop = copy.deepcopy(there)
    batch = fit_loop[BATCH]
    for scope in ("total", "current"):
        batch[scope] = dict.fromkeys(COUNTERS, batch[scope]["completed"])
    batch["is_last_batch"] = False
    return {"fit_loop": fit_loop, "there": _counters(there), "stepped": _stepped(trainer), "validation_due": False}


def before_validation(trainer: L.Trainer) -> dict[str, Any]:
    """Progress at the start of a validation inside the fit, though some of it has run: it runs again from its start."""
    fit_loop = copy.deepcopy(trainer.fit_loop.state_dict())
    # One validation batch under way is how Lightning tells an unfinished validation from a finished one.
    fit_loop[VALIDATION] = {
        "total": {"ready": 1, "started": 1, "processed": 0, "completed": 0},
        "current": dict.fromkeys(COUNTERS, 0),
        "is_last_batch": False,
    }
    return {"fit_loop": fit_loop, "there": {}, "stepped": _stepped(trainer), "validation_due": True}


def place(trainer: L.Trainer, saved: dict[str, Any]) -> str:
    """Puts right what Lightning's restart leaves one off, and compares all counters with the saved ones.

    Args:
        trainer: at the place where `saved` was made.
        saved: of `before_batch` or `before_validation`.

    Returns:
        What is not as it was, or an empty text.
    """
    trainer.fit_loop.epoch_loop._batches_that_stepped = saved["stepped"]
    now, there = _counters(trainer.fit_loop.state_dict()), saved["there"]
    wrong = [f"{name} is {now.get(name)}, was {value}" for name, value in there.items() if now.get(name) != value]
    return "; ".join(wrong)


def _counters(state: dict[str, Any]) -> dict[str, Any]:
    """Progress without the loops' own state, and without validation batches, which nothing but bars count."""
    return {k: copy.deepcopy(v) for k, v in state.items() if not k.endswith("state_dict") and k != VALIDATION}


def _stepped(trainer: L.Trainer) -> int:
    return trainer.fit_loop.epoch_loop._batches_that_stepped
