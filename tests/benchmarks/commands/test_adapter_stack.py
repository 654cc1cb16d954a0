"""Runs that stand on earlier runs, at the command line: trained, tested, exported, and refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.commands.export import load_run_model
from benchmarks.paths import CONFIGS
from tests.benchmarks.cli.refusals import refusal
from tests.benchmarks.commands.exported import TOKENS, as_the_card_says, ours, run_of
from tests.recmodels.backbones import encoder_decoders as pairs

WARNINGS = ("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
pytestmark = [pytest.mark.filterwarnings(rule) for rule in WARNINGS]
FILES = ["-c", str(CONFIGS / "model/adapter.yaml"), "-c", str(CONFIGS / "data/ml_100k.yaml")]


def stacked(backbone: Path, folder: Path) -> Path:
    """The checkpoint of a third level, whose lower ones are read from an export and a run, and then removed."""
    first = run_of("AdapterTuning", backbone, folder / "first", bottleneck=4)
    assert main(["export", str(first), "--out", str(folder / "exported")]) == 0
    options: dict[str, Any] = {"placement": "parallel", "scaling": "learned", "activation": "tanh"}
    run_of("AdapterTuning", backbone, folder / "second", stack_on=str(folder / "exported"), **options)
    options = {"placement": "pfeiffer", "scaling": 2.5, "stack_on": str(folder / "second")}
    third = run_of("AdapterTuning", backbone, folder / "third", **options)
    for name in ("first", "exported", "second"):
        shutil.rmtree(folder / name)
    return third


@torch.no_grad()
def test_an_exported_stack_scores_as_the_checkpoint_does(tiny_causal: Path, mini_data: Path, tmp_path: Path) -> None:
    checkpoint, out = stacked(tiny_causal, tmp_path), tmp_path / "out"
    assert main(["export", str(checkpoint), "--out", str(out)]) == 0
    got = as_the_card_says(out, {"input_ids": TOKENS, "attention_mask": torch.ones_like(TOKENS)})
    assert (got[0].log_softmax(-1) - ours(checkpoint)).abs().max() < 1e-4
    told = json.loads((out / "instructrec_adapter.json").read_text())
    assert [(level["activation"], level["scaling"]) for level in told["levels"]] == [
        ("gelu", 1.0),
        ("tanh", None),
        ("gelu", 2.5),
    ]


@torch.no_grad()
def test_an_exported_stack_of_an_encoder_decoder(tiny_t5: Path, mini_data: Path, tmp_path: Path) -> None:
    checkpoint = stacked(tiny_t5, tmp_path)
    assert main(["export", str(checkpoint), "--out", str(tmp_path / "out")]) == 0
    model = load_run_model(checkpoint, checkpoint.parent.parent / "config.yaml", [])
    prompt, answer = [5, 9, 17, 3, 22], [7, 11, 4]
    expected = model.score(pairs.tree_batch([(prompt, [answer])]))
    logits = as_the_card_says(tmp_path / "out", {"input_ids": torch.tensor([prompt]), "labels": torch.tensor([answer])})
    got = logits[0].log_softmax(-1).gather(1, torch.tensor(answer)[:, None]).sum()
    assert (got - expected).abs().max() < 1e-4


def test_a_run_stands_on_a_run_and_is_tested_without_it(tiny_causal: Path, mini_data: Path, tmp_path: Path) -> None:
    fast = [f"--model.backbone={tiny_causal}", "--model.bottleneck=2", "--trainer.max_steps=2", "--data.batch_size=4"]
    quiet = ["--trainer.logger=false", "--data.protocol.negatives=3"]
    first, second = tmp_path / "first", tmp_path / "second"
    assert main(["fit", *FILES, *fast, *quiet, "--out", str(first)]) == 0
    assert main(["fit", *FILES, *fast, *quiet, "--model.stack_on", str(first), "--out", str(second)]) == 0

    records = {run: json.loads((run / "record.json").read_text()) for run in (first, second)}
    guards, costs = records[second]["guards"], records[second]["costs"]
    assert guards["stack_levels"] == 1
    assert (
        guards["stack_parameters"] == records[first]["costs"]["trainable_parameters"] == costs["trainable_parameters"]
    )
    assert guards["step0_score_difference"] == guards["reloaded_score_difference"] == 0
    assert guards["frozen_unchanged"] is True
    assert costs["trained_bytes"] == 4 * costs["trainable_parameters"]
    shutil.rmtree(first)
    checkpoint = second / "checkpoints" / guards["tested_checkpoint"]
    words = ["-c", str(second / "config.yaml"), "--ckpt_path", str(checkpoint), *quiet[:1]]
    assert main(["test", *words, "--out", str(tmp_path / "again")]) == 0
    again = json.loads((tmp_path / "again" / "record.json").read_text())
    assert again["metrics"] == records[second]["metrics"]


def test_what_cannot_be_stood_on(
    tiny_causal: Path, mini_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_of("LoRATuning", tiny_causal, tmp_path / "lora")
    run_of("AdapterTuning", tiny_causal, tmp_path / "adapter", bottleneck=2)
    shutil.copytree(tiny_causal, tmp_path / "other")
    cases = {
        ("lora", tiny_causal): "it is of LoRATuning; adapters stand on adapters only, which AdapterTuning trains",
        (
            "adapter",
            tmp_path / "other",
        ): f"and model.backbone is '{tmp_path / 'other'}'; use --model.backbone {tiny_causal}",
        ("gone", tiny_causal): "not a run, a checkpoint or an exported folder",
    }
    for (name, backbone), message in cases.items():
        words = [f"--model.backbone={backbone}", f"--model.stack_on={tmp_path / name}", f"--out={tmp_path / 'run'}"]
        said = refusal(["fit", *FILES, *words, "--trainer.logger=false"], capsys)
        assert message in said
        assert f"model.stack_on {tmp_path / name}: " in said
