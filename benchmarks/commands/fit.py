"""Runs a Lightning command with the exit codes and one-line errors that users get."""

from __future__ import annotations

import gc
import shlex
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from datamodules.contract.errors import InputError, first_input_error, machine_failure

if TYPE_CHECKING:
    from benchmarks.runs.folder import RunFolder


HELP = """\
usage: instructrec {command} -c MODEL -c DATA [-c ...] [--KEY VALUE ...]

  {what}

  -c NAME                  a config: a name that `instructrec ls` lists, or a YAML file; later ones win, options win over all
  --out DIR                folder of everything that the run writes; default: results/run, or the next free number
  --overwrite              replace the finished run that --out holds
  --ckpt_path FILE         checkpoint to measure or predict with; for fit: `last` continues what stopped
  --name TEXT              name of the row in tables; default: the model's class
  --seed_everything N      seed of everything that is drawn
  --model.KEY VALUE        an option of the method, such as --model.backbone, --model.objective
  --data.KEY VALUE         an option of the data set, such as --data.batch_size, --data.predict_file, --data.protocol.history
  --trainer.KEY VALUE      an option of Lightning's trainer, such as --trainer.max_steps, --trainer.precision
  --resume.every_n_steps N optimiser steps between two saves that `--ckpt_path last` continues from
  --allow-import PACKAGE   configs may also name classes of this package (a plug-in); repeatable

  --print_config           print the whole config and stop
  --model.help CLASS       every option of a method, such as --model.help LoRATuning; --data.help CLASS of a data set
  --help=all               every option of the trainer, too"""
"""What `--help` prints at once; the parser's own help takes seconds and pages."""
WHAT = {
    "fit": "Tunes, verifies the checkpoint, tests, and writes the run record.",
    "validate": "Measures on the validation cases.",
    "test": "Measures on the test cases and writes the run record.",
    "predict": "Ranks items for the users of --data.predict_file.",
}


def run_command(arguments: list[str]) -> int:
    """Runs `fit`, `validate`, `test` or `predict`.

    A failure leaves a record with status `failed` in the run's folder, if the config was valid.

    Returns:
        0 done, 2 the input is wrong, 1 anything else; 130, 143 or 138 after SIGINT, SIGTERM or, in a SLURM job,
        SIGUSR1, which also asks SLURM to run the job again.
    """
    if {"-h", "--help"} & set(arguments):
        print(HELP.format(command=arguments[0], what=WHAT[arguments[0]]))
        return 0
    arguments = ["--help" if word == "--help=all" else word for word in arguments]
    app = _imported_app()
    from callbacks.interruption import Interrupted, interruptible

    started, folder = time.monotonic(), None
    try:
        with interruptible():
            cli = app.build(arguments)
            folder = cli.run_folder if arguments[0] in ("fit", "test") else None
            cli.run()
    except InputError as error:
        return _fail(folder, str(error), 2)
    except Interrupted as end:
        return _leave(folder if arguments[0] == "fit" else None, end)
    except Exception as error:  # the exit code and the record must say so, whatever it was
        if (wrong := first_input_error(error)) is not None:
            return _fail(folder, str(wrong), 2)
        if (message := machine_failure(error)) is not None:
            return _fail(folder, message, 1)
        if not isinstance(error, app.EXPECTED_FAILURES):
            traceback.print_exc()
        return _fail(folder, f"{type(error).__name__}: {error}", 1)
    if folder is not None:
        _say_where(cli, time.monotonic() - started)
    return 0


def _imported_app() -> ModuleType:
    """The libraries make a million objects that stay; collecting garbage among them takes a tenth of the start."""
    if (known := sys.modules.get("benchmarks.cli.app")) is not None:
        return known
    gc.disable()
    try:
        from benchmarks.cli import app
    finally:
        gc.freeze()
        gc.enable()
    return app


def _leave(folder: RunFolder | None, end: Any) -> int:
    from benchmarks.runs.resuming import step_of
    from callbacks.interruption import requeue
    from callbacks.resume import checkpoints_in

    message = f"interrupted by {end}"
    if folder is not None:
        saved = checkpoints_in(folder.path / "resume")
        at = f"saved at step {step_of(saved[0])}" if saved else "nothing was saved yet"
        message += f"; {at}; the same command with --ckpt_path last continues"
        folder.write_end("interrupted", message)
    print(f"instructrec: {message}", file=sys.stderr)
    if end.asks_to_requeue and (problem := requeue()):
        print(f"instructrec: the job is not run again: {problem}", file=sys.stderr)
    return int(end.exit_code)


def _fail(folder: RunFolder | None, message: str, code: int) -> int:
    line = " ".join(message.split())
    if folder is not None:
        with suppress(OSError):  # a full disk takes no record of it either; the line and the exit code say it
            folder.write_end("failed", line, code)
    print(f"instructrec: {line}", file=sys.stderr)
    return code


def _say_where(cli: Any, seconds: float) -> None:
    folder = Path(cli.trainer.default_root_dir)
    values = {k: float(v) for k, v in cli.trainer.callback_metrics.items() if k.startswith("test/")}
    shown = [k for k in ("hr@1", "hr@5", "hr@10", "ndcg@10", "mrr", "auc", "rmse") if f"test/{k}" in values]
    if shown:
        print(" · ".join(f"{name} {values[f'test/{name}']:.4f}" for name in shown))
    for rule in cli.datamodule.protocol.also:
        told = [f"{name} {values[f'test/{rule}/{name}']:.4f}" for name in shown if f"test/{rule}/{name}" in values]
        print(f"{rule}: {' · '.join(told)}")
    files = {"record.json": "config, costs, metrics", "scores.npz": "per user", "metrics.csv": "learning curves"}
    print(
        f"done in {seconds:.0f} s: "
        + ", ".join(f"{folder / k} ({v})" for k, v in files.items() if (folder / k).is_file())
    )
    weights = next(
        (path for path in (folder / "checkpoints" / f"{n}.ckpt" for n in ("best", "last")) if path.is_file()), None
    )
    if (folder / "config.yaml").is_file() and (weights or not cli.model.trains):
        checkpoint = f" --ckpt_path {shlex.quote(str(weights))}" if weights else ""
        config = shlex.quote(str(folder / "config.yaml"))
        print(f"next: instructrec predict -c {config}{checkpoint} --data.predict_file users.jsonl")
