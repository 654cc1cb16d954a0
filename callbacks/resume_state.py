"""Where Lightning's training loop stands, in a form from which it starts again exactly there.

Lightning 2.6 restarts rightly from counters that all agree, and then passes over a validation that the last step was
due for. Counters in the middle of a batch it gets wrong in several ways (a batch counted twice, a validation lost,
logs one step off), so what is saved says that the batch under way has not begun.
"""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import CSVLogger, WandbLogger

from datamodules.contract.compat.lightning import batches_that_stepped, set_batches_that_stepped

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
    return {
        "fit_loop": fit_loop,
        "there": _counters(there),
        "stepped": batches_that_stepped(trainer),
        "validation_due": False,
    }


def before_validation(trainer: L.Trainer) -> dict[str, Any]:
    """Progress at the start of a validation inside the fit, though some of it has run: it runs again from its start."""
    fit_loop = copy.deepcopy(trainer.fit_loop.state_dict())
    # One validation batch under way is how Lightning tells an unfinished validation from a finished one.
    fit_loop[VALIDATION] = {
        "total": {"ready": 1, "started": 1, "processed": 0, "completed": 0},
        "current": dict.fromkeys(COUNTERS, 0),
        "is_last_batch": False,
    }
    return {"fit_loop": fit_loop, "there": {}, "stepped": batches_that_stepped(trainer), "validation_due": True}


def restore_counters(trainer: L.Trainer, saved: dict[str, Any]) -> str:
    """Puts right what Lightning's restart leaves one off, and compares all counters with the saved ones.

    Returns:
        What is not as it was, or an empty text.
    """
    set_batches_that_stepped(trainer, saved["stepped"])
    now, there = _counters(trainer.fit_loop.state_dict()), saved["there"]
    wrong = [f"{name} is {now.get(name)}, was {value}" for name, value in there.items() if now.get(name) != value]
    return "; ".join(wrong)


def _counters(state: dict[str, Any]) -> dict[str, Any]:
    """Progress without the loops' own state, and without validation batches, which nothing but bars count."""
    return {k: copy.deepcopy(v) for k, v in state.items() if not k.endswith("state_dict") and k != VALIDATION}


def random_state() -> dict[str, Any]:
    """State of python's, numpy's and torch's generators, on the CPU and on every CUDA device in use.

    Example:
        >>> state = random_state()
        >>> first = torch.rand(3), random.random(), np.random.rand()
        >>> set_random_state(state)
        >>> second = torch.rand(3), random.random(), np.random.rand()
        >>> torch.equal(first[0], second[0]), first[1:] == second[1:]
        (True, True)
    """
    version, words, gauss = random.getstate()
    numpy = np.random.get_state(legacy=False)  # noqa: NPY002  # the global generator is what libraries draw from
    return {
        "python": {"version": version, "words": list(words), "gauss": gauss},
        "numpy": {
            "bit_generator": numpy["bit_generator"],
            "key": numpy["state"]["key"].tolist(),
            "pos": int(numpy["state"]["pos"]),
            "has_gauss": int(numpy["has_gauss"]),
            "gauss": float(numpy["gauss"]),
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Puts a state back that `random_state` took, on the CPU."""
    python, numpy = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["words"]), python["gauss"]))
    np.random.set_state(  # noqa: NPY002
        {
            "bit_generator": numpy["bit_generator"],
            "state": {"key": np.array(numpy["key"], dtype=np.uint32), "pos": numpy["pos"]},
            "has_gauss": numpy["has_gauss"],
            "gauss": numpy["gauss"],
        }
    )
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


def logs_so_far(trainer: L.Trainer) -> dict[str, Any]:
    """The content of every CSV log, and the ids of W&B runs.

    Returns:
        `csv`, text by position among the loggers; `wandb`, ids.
    """
    texts: dict[int, str] = {}
    runs: list[str] = []
    for number, logger in enumerate(trainer.loggers):
        if isinstance(logger, CSVLogger):
            logger.save()
            file = Path(logger.experiment.metrics_file_path)
            texts[number] = file.read_bytes().decode("utf-8") if file.is_file() else ""
        elif isinstance(logger, WandbLogger):
            runs.append(str(logger.version))
    return {"csv": texts, "wandb": runs}


def put_back_logs(trainer: L.Trainer, logs: dict[str, Any]) -> None:
    """Makes CSV logs what they were; rows of steps that will be taken again are gone."""
    for number, text in logs.get("csv", {}).items():
        logger = trainer.loggers[number] if number < len(trainer.loggers) else None
        if isinstance(logger, CSVLogger) and text:
            Path(logger.experiment.metrics_file_path).write_bytes(text.encode("utf-8"))
            logger.experiment.metrics_keys = text.splitlines()[0].split(",")
