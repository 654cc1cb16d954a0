"""Whether a fit continues, from which checkpoint, and what must not have changed; trials of a search."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.runs.folder import RunFolder
from benchmarks.runs.resuming import continuation, forget, newest, restarts, settings_of
from benchmarks.runs.trial import Trial, trial_named
from datamodules.contract.checkpoints import write_checkpoint
from datamodules.contract.errors import InputError

IDENTITY = {"settings": {"data.batch_size": "4"}, "circumstances": {"version of torch": "2.11"}}


def save(out: Path, step: int, identity: dict[str, Any] = IDENTITY) -> Path:
    path = out / "resume" / f"step-{step:08d}.ckpt"
    state = {"identity": json.dumps(identity), "logs": {"csv": {}, "wandb": ["a1"]}}
    write_checkpoint({"state_dict": {}, "global_step": step, "resume": state}, path)
    return path


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def test_a_fit_begins_where_nothing_was_saved(tmp_path: Path) -> None:
    assert continuation(tmp_path, None, IDENTITY) is None
    assert continuation(tmp_path, "last", IDENTITY) is None


def test_an_interrupted_run_is_continued_only_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 3)
    path = save(tmp_path, 12)
    with pytest.raises(InputError, match="has not finished, saved at step 12; add --ckpt_path last to continue it"):
        continuation(tmp_path, None, IDENTITY)
    asked = continuation(tmp_path, "last", IDENTITY)
    assert asked is not None
    assert (asked.path, asked.step, asked.wandb) == (path, 12, ("a1",))
    assert continuation(tmp_path, str(tmp_path / "resume" / "step-00000003.ckpt"), IDENTITY).step == 3  # type: ignore[union-attr]

    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")  # a requeued job continues unasked
    assert restarts() == 1
    assert continuation(tmp_path, None, IDENTITY) == asked


def test_the_newest_whole_checkpoint_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = save(tmp_path, 3), save(tmp_path, 12)
    damage(second)
    assert newest(tmp_path / "resume") == first
    assert "step-00000012.ckpt" in capsys.readouterr().err
    damage(first)
    with pytest.raises(InputError, match="no checkpoint in .* is whole"):
        newest(tmp_path / "resume")


def test_changed_settings_are_refused_and_changed_circumstances_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path, 3)
    other = {"settings": {"data.batch_size": "8"}, "circumstances": {"version of torch": "2.12"}}
    with pytest.raises(InputError, match="data.batch_size was 4, is 8; put it back as it was, or start a new run"):
        continuation(tmp_path, "last", other)
    assert continuation(tmp_path, "last", IDENTITY | {"circumstances": other["circumstances"]}) is not None
    assert "version of torch was 2.11, is 2.12" in capsys.readouterr().err


def test_weights_alone_are_no_state_of_a_run(tmp_path: Path) -> None:
    path = tmp_path / "best.ckpt"
    write_checkpoint({"state_dict": {}, "global_step": 1}, path)
    with pytest.raises(InputError, match="expected a checkpoint of a run's resume/ folder, found weights only"):
        continuation(tmp_path, str(path), IDENTITY)


def test_what_changes_no_number_is_no_setting() -> None:
    model = {"class_path": "recmodels.LoRATuning", "init_args": {"r": 8}}
    callbacks = [
        {"class_path": "callbacks.SampleTable", "init_args": {"count": 5}},
        {"class_path": "ModelCheckpoint", "init_args": {"dirpath": "a", "monitor": "val/quality"}},
    ]
    config: dict[str, Any] = {"model": model, "trainer": {"max_steps": 4, "callbacks": callbacks}}
    free = {"out": "a", "overwrite": True, "name": "x", "ckpt_path": "last", "search": {"trial": None}}
    assert settings_of(config | free) == {
        "model.class_path": "recmodels.LoRATuning",
        "model.init_args.r": "8",
        "trainer.max_steps": "4",
        "trainer.callbacks.ModelCheckpoint": "there",
        "trainer.callbacks.ModelCheckpoint.monitor": "val/quality",
    }


def test_a_finished_run_forgets_what_it_was_continued_from(tmp_path: Path) -> None:
    path = save(tmp_path, 3)
    write_checkpoint({"state_dict": {}}, path.with_suffix(".best"))
    (path.parent / "note.txt").write_text("the user's own")
    forget(tmp_path)
    assert [file.name for file in path.parent.iterdir()] == ["note.txt"]
    (path.parent / "note.txt").unlink()
    save(tmp_path, 4)
    forget(tmp_path)
    assert not path.parent.exists()
    forget(tmp_path)  # nothing is left, and nothing is wrong


def validated(trial: Trial, step: int, **metrics: float) -> Any:
    trainer = SimpleNamespace(
        sanity_checking=False,
        global_step=step,
        callback_metrics={name.replace("_", "/", 1): torch.tensor(value) for name, value in metrics.items()},
        state=SimpleNamespace(fn="fit"),
        should_stop=False,
        is_global_zero=True,
        callbacks=[trial],
    )
    trial.on_validation_end(trainer, None)  # type: ignore[arg-type]
    return trainer


@pytest.mark.parametrize(("metric", "best"), [("val/mrr", 0.5), ("val/rmse", 0.25)])
def test_a_trials_value_is_its_best_validation(tmp_path: Path, metric: str, best: float) -> None:
    name = metric.replace("/", "_")
    first = Trial(metric, "none", [])
    validated(first, 10, **{name: 0.25})
    trial = Trial(metric, "none", [])
    trial.load_state_dict(first.state_dict())  # as a continued run does
    validated(trial, 20, **{name: 0.5})
    trainer = validated(trial, 30, **{name: 0.375})
    config = {"model": {"class_path": "recmodels.LoRATuning"}, "data": {"class_path": "datamodules.MovieLens100K"}}
    for file in ("best.ckpt", "last.ckpt"):
        write_checkpoint({"state_dict": {}}, tmp_path / "checkpoints" / file)
    trial.write_record(trainer, RunFolder(tmp_path, config, "lora"), "tuned")
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["status"] == "finished"
    assert record["trial"]["value"] == best
    assert record["trial"]["values"] == [[10, 0.25], [20, 0.5], [30, 0.375]]
    assert not record["trial"]["pruned"]
    assert not list((tmp_path / "checkpoints").iterdir()), "nobody needs a trial's weights"


def test_a_metric_that_is_not_measured_names_the_nearest() -> None:
    with pytest.raises(InputError, match=r"search.metric is 'val/mr', which is not measured; nearest: val/mrr"):
        validated(Trial("val/mr", "none", []), 1, val_mrr=0.5, train_loss=1.0)


def test_no_file_is_no_trial() -> None:
    assert trial_named(None) is None
