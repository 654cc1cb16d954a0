"""Runs that start from earlier runs: of their own method, or any method from full tuning."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import recmodels
from callbacks.training_guard import load_trained
from datamodules.contract.checkpoints import write_checkpoint
from datamodules.contract.errors import InputError
from recmodels.methods.start import earlier_run
from recmodels.objectives import DPO, SoftmaxDPO
from tests.recmodels.methods.support_matrix import backbones_in_memory, batch_for
from tests.recmodels.oracle import CASES, tree_batch, two_steps

pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("UserWarning", "DeprecationWarning", "FutureWarning")
]
OPTIONS: dict[str, dict[str, Any]] = {
    "LoRATuning": {"r": 2},
    "AdaLoRATuning": {"init_r": 3},
    "AdapterTuning": {"bottleneck": 3},
    "PrefixTuning": {"length": 3},
    "PartialTuning": {"part": "top_layers"},
    "FullTuning": {},
}


def make(method: str, family: str = "llama", **options: Any) -> Any:
    """A loaded model in evaluation mode."""
    torch.manual_seed(3)
    model = getattr(recmodels, method)(backbone=f"tiny/{family}", **OPTIONS.get(method, {}) | options)
    with backbones_in_memory():
        model.configure_model()
    model.log = lambda *a, **k: None
    return model.eval()


def stored(model: Any, run: Path) -> str:
    """The folder of a run that left this model."""
    checkpoint: dict[str, Any] = {"state_dict": model.state_dict(), "global_step": 2}
    model.on_save_checkpoint(checkpoint)
    write_checkpoint(checkpoint, run / "checkpoints" / "best.ckpt")
    return str(run)


def tuned(method: str, family: str = "llama", **options: Any) -> Any:
    """A model after two steps."""
    return two_steps(make(method, family, **options), batch_for(family))


@pytest.mark.parametrize("family", ["llama", "t5"])
@pytest.mark.parametrize("method", OPTIONS)
@torch.no_grad()
def test_a_run_starts_at_the_scores_of_an_earlier_one_of_its_method(method: str, family: str, tmp_path: Path) -> None:
    with torch.enable_grad():
        first = tuned(method, family)
    source = stored(first, tmp_path / "first")
    second = make(method, family, init_from=source)
    assert torch.equal(second.score(batch_for(family)), first.score(batch_for(family)))
    assert second.findings["lineage"][0].items() >= {"run": "first", "model": method, "steps": 2}.items()
    third = make(method, family, init_from=stored(second, tmp_path / "second"))
    assert [each["run"] for each in third.findings["lineage"]] == ["first", "second"]


@pytest.mark.parametrize("method", [method for method in OPTIONS if method not in ("PartialTuning", "FullTuning")])
@torch.no_grad()
def test_any_method_starts_on_full_tuning(method: str, tmp_path: Path) -> None:
    with torch.enable_grad():
        first = tuned("FullTuning")
    source, batch = stored(first, tmp_path / "first"), batch_for("llama")
    model = make(method, init_from=source)
    assert set(model.trained()) == set(make(method).trained())
    if model.identity_at_start:
        torch.testing.assert_close(model.score(batch), first.score(batch))
    with torch.enable_grad():
        two_steps(model, batch)
    checkpoint = Path(stored(model, tmp_path / "second")) / "checkpoints/best.ckpt"
    again = make(method, init_from=source)
    load_trained(again, checkpoint)
    assert torch.equal(again.score(batch), model.score(batch))
    (tmp_path / "first" / "checkpoints" / "best.ckpt").unlink()
    with pytest.raises(InputError, match="first holds no checkpoints/best.ckpt"):
        make(method, init_from=source)
    with pytest.raises(InputError, match="the checkpoint was trained on backbone weights"):
        load_trained(make(method), checkpoint)


@pytest.mark.parametrize(("objective", "loss"), [(DPO(), 2), (SoftmaxDPO(), 3)])
def test_the_reference_of_a_second_stage_is_the_end_of_the_first(objective: Any, loss: int, tmp_path: Path) -> None:
    first = tuned("LoRATuning")
    model = make("LoRATuning", init_from=stored(first, tmp_path / "first"), objective=objective)
    cases = [(prompt, (answers * 2)[:3]) for prompt, answers in CASES]
    value = model.training_step(tree_batch(cases, 64, 2048), 0)
    assert float(value.detach()) == pytest.approx(math.log(loss), abs=1e-5)
    assert not torch.equal(model.score(batch_for("llama")), make("LoRATuning").score(batch_for("llama")))


def test_a_run_that_cannot_be_started_from_is_refused_in_one_line(tmp_path: Path) -> None:
    lora, full = stored(tuned("LoRATuning"), tmp_path / "lora"), stored(tuned("FullTuning"), tmp_path / "full")
    write_checkpoint({"state_dict": {}}, tmp_path / "other.ckpt")
    other = torch.load(Path(full) / "checkpoints/best.ckpt", weights_only=True)
    other["instructrec"]["base_checksum"] = "0" * 64
    write_checkpoint(other, tmp_path / "moved.ckpt")
    cases: list[tuple[str, dict[str, Any], str]] = [
        (
            "AdapterTuning",
            {"init_from": lora},
            "it is of LoRATuning, and AdapterTuning starts from runs of its own or of",
        ),
        ("LoRATuning", {"init_from": lora, "r": 3}, "the checkpoint does not fit: network.*lora"),
        ("LoRATuning", {"init_from": lora, "family": "gpt2"}, "was trained on backbone weights"),
        ("LoRATuning", {"init_from": full, "family": "gpt2"}, "does not fit backbone 'gpt2'"),
        ("LoRATuning", {"init_from": str(tmp_path / "moved.ckpt")}, "tuned from backbone weights 000000000000, the"),
        ("LoRATuning", {"init_from": str(tmp_path / "other.ckpt")}, "was not written by instructrec"),
        ("LoRATuning", {"init_from": str(tmp_path)}, "holds no checkpoints/best.ckpt"),
        ("LoRATuning", {"init_from": str(tmp_path / "gone")}, "is not there"),
    ]
    for method, options, message in cases:
        with pytest.raises(InputError, match=message) as refused:
            make(method, **options)
        assert str(refused.value).startswith("model.init_from ")
        assert "\n" not in str(refused.value)
    assert earlier_run(str(tmp_path / "gone"), "LoRATuning", needed=False) is None
    with pytest.raises(InputError, match=r"model\.tuning\.init_from is set, and a tagger"):
        recmodels.TokenClassification(tuning=recmodels.LoRATuning(init_from=lora))
