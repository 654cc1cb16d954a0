"""Whether and from where a fit continues, and what has changed since."""

from __future__ import annotations

import json
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.option_groups import without_groups
from callbacks.resume import KEY, best_beside, checkpoints_in
from datamodules.contract.checkpoints import check_file, read_checkpoint, remove_checkpoint
from datamodules.contract.compat.torch import has_bfloat16_units
from datamodules.contract.errors import CheckpointError, InputError
from datamodules.contract.files import clear_drafts

# Settings that change no number: where things go, what is watched, how many processes prepare batches.
FREE = (
    "out",
    "overwrite",
    "name",
    "config",
    "ckpt_path",
    "resume",
    "search",
    "trainer.default_root_dir",
    "trainer.logger",
    "trainer.enable_",
    "trainer.log_every_n_steps",
    "trainer.profiler",
    "data.init_args.protocol.also",
    "data.init_args.num_workers",
    "data.init_args.eval_batch_size",
    "data.init_args.data_dir",
    "data.init_args.predict_file",
)
FREE_CALLBACKS = ("ProgressLog", "SampleTable", "PredictionWriter")


@dataclass(frozen=True)
class Continuation:
    """Where a fit goes on: the checkpoint, its optimiser step, and the ids of the W&B runs."""

    path: Path
    step: int
    wandb: tuple[str, ...]


def continuation(out: Path, asked: str | None, identity: dict[str, Any]) -> Continuation | None:
    """Finds the checkpoint that a fit continues from.

    Args:
        out: the run's folder.
        asked: `--ckpt_path`: `last` is the newest whole checkpoint of the folder's `resume/`, and nothing where
            there is none; else a file; None begins anew.
        identity: what makes the numbers of this run, as `identity_of` gives it.

    Returns:
        None where the run begins.

    Raises:
        InputError: the folder holds a run that was not finished and nobody asked to continue, or the checkpoint is
            damaged, or settings have changed.
    """
    folder = out / "resume"
    if asked is None and restarts() == 0:
        if checkpoints_in(folder):
            raise InputError(
                f"{out} holds a run that has not finished, saved at step {step_of(checkpoints_in(folder)[0])};"
                f" add --ckpt_path last to continue it, or delete {folder} to begin again"
            )
        return None
    path = newest(folder) if asked in (None, "last") else Path(str(asked))
    if path is None:
        return None
    try:
        content = read_checkpoint(path, mmap=True)
    except CheckpointError as error:
        raise InputError(f"--ckpt_path: {error}") from error
    saved = content.get(KEY)
    if saved is None:
        raise InputError(f"--ckpt_path {path}: expected a checkpoint of a run's resume/ folder, found weights only")
    refused, reported = changes(json.loads(saved["identity"]), identity)
    if refused:
        raise InputError(
            f"{path} cannot be continued, for it would not be the same run: {'; '.join(refused)};"
            " put it back as it was, or start a new run in another --out"
        )
    for line in reported:
        print(f"instructrec: continued with a change: {line}", file=sys.stderr)
    print(f"continued from step {content['global_step']}: {path}", flush=True)
    return Continuation(path, int(content["global_step"]), tuple(saved["logs"].get("wandb", ())))


def newest(folder: Path) -> Path | None:
    """The newest whole checkpoint; damaged ones are named on stderr and passed over.

    Raises:
        InputError: there are checkpoints, and all are damaged.
    """
    damage = ""
    for path in checkpoints_in(folder):
        try:
            check_file(path)
        except CheckpointError as error:
            damage = str(error)
            print(f"instructrec: {damage}; the checkpoint before it is used", file=sys.stderr)
        else:
            return path
    if damage:
        raise InputError(f"no checkpoint in {folder} is whole; the last one: {damage}; delete {folder} to begin again")
    return None


def restarts() -> int:
    """How often SLURM has run this job again: a job that was requeued continues without being asked to."""
    count = os.environ.get("SLURM_RESTART_COUNT", "0")
    return int(count) if count.isdigit() else 0


def identity_of(config: dict[str, Any], header: dict[str, Any], device: str) -> dict[str, Any]:
    """What makes the numbers of a run.

    Returns:
        `settings`, which a continued run must share, and `circumstances`, whose change is reported.
    """
    versions = {f"version of {name}": installed for name, installed in header["versions"].items()}
    code = f"{header.get('commit')}{' with changes' if header.get('dirty') else ''}"
    return {"settings": settings_of(config), "circumstances": versions | {"code": code, "device": device}}


def machine(accelerator: str) -> str:
    """The kind of machine that computes.

    Example:
        >>> "threads" in machine("cpu")
        True
    """
    if torch.cuda.is_available() and accelerator != "cpu":
        return f"{torch.cuda.get_device_name()} x {torch.cuda.device_count()}"
    return f"{platform.machine()}, {torch.get_num_threads()} threads"


def settings_of(config: dict[str, Any]) -> dict[str, str]:
    """Settings that change numbers, by dotted key, as text.

    Example:
        >>> settings_of({"out": "a", "model": {"class_path": "LoRA", "init_args": {"r": 8}}})
        {'model.class_path': 'LoRA', 'model.init_args.r': '8'}
    """
    flat: dict[str, str] = {}

    def walk(value: Any, key: str) -> None:
        if key.startswith(FREE):
            return
        if isinstance(value, dict):
            for name, inner in (without_groups(value) if key == "data.init_args" else value).items():
                walk(inner, f"{key}.{name}" if key else str(name))
        elif isinstance(value, (list, tuple)) and value and isinstance(value[0], dict):
            for inner in value:
                name = str(inner.get("class_path", "")).rsplit(".", 1)[-1]
                if name not in FREE_CALLBACKS:
                    walk({k: v for k, v in (inner.get("init_args") or {}).items() if k != "dirpath"}, f"{key}.{name}")
                    flat[f"{key}.{name}"] = "there"
        else:
            flat[key] = json.dumps(value, default=str) if not isinstance(value, str) else value

    walk(config, "")
    return flat


def changes(before: dict[str, Any], now: dict[str, Any]) -> tuple[list[str], list[str]]:
    """What differs between two identities: what is refused, and what is reported.

    Example:
        >>> old = {"settings": {"data.batch_size": "4"}, "circumstances": {"version of torch": "2.11"}}
        >>> new = {"settings": {"data.batch_size": "8"}, "circumstances": {"version of torch": "2.12"}}
        >>> changes(old, new)
        (['data.batch_size was 4, is 8'], ['version of torch was 2.11, is 2.12'])
    """
    differences = []
    for part in ("settings", "circumstances"):
        old, new = before[part], now[part]
        keys = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
        differences.append([f"{key} was {old.get(key, 'absent')}, is {new.get(key, 'absent')}" for key in keys])
    return differences[0], differences[1]


def step_of(path: Path) -> int:
    """The step in a checkpoint's name.

    Example:
        >>> step_of(Path("resume/step-00000100.ckpt"))
        100
    """
    return int(path.stem.removeprefix("step-"))


def forget(out: Path) -> None:
    """Removes what a finished run no longer needs to be continued."""
    folder = out / "resume"
    if not folder.is_dir():
        return
    for path in checkpoints_in(folder):
        remove_checkpoint(best_beside(path))
        remove_checkpoint(path)
    clear_drafts(folder)
    if not any(folder.iterdir()):
        folder.rmdir()


def best_precision(accelerator: str) -> str:
    """bfloat16 mixed precision where the hardware has it, else float32."""
    if torch.cuda.is_available() and accelerator != "cpu":
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "32-true"
    fast = has_bfloat16_units()
    return "bf16-mixed" if fast else "32-true"
