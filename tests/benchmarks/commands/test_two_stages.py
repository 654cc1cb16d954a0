"""Two stages at the command line: a preference run from a fine-tuned one, its record, its table and its refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.__main__ import main
from benchmarks.analysis.leaderboard import build_tables
from benchmarks.analysis.runs import read_suite
from benchmarks.paths import CONFIGS
from tests.benchmarks.cli.refusals import refusal
from tests.benchmarks.commands.exported import TOKENS, ours, run_of

WARNINGS = ("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
pytestmark = [pytest.mark.filterwarnings(rule) for rule in WARNINGS]
FILES = ["-c", str(CONFIGS / "model/lora.yaml"), "-c", str(CONFIGS / "data/ml_100k.yaml")]
QUIET = ["--trainer.logger=false", "--data.protocol.negatives=3"]


def test_preferences_start_from_a_tuned_run(tiny_causal: Path, mini_data: Path, tmp_path: Path) -> None:
    fast = [f"--model.backbone={tiny_causal}", "--model.r=2", "--trainer.max_steps=2", "--data.batch_size=4"]
    first, second = tmp_path / "grid/runs/first", tmp_path / "grid/runs/second"
    assert main(["fit", *FILES, *fast, *QUIET, "--out", str(first), "--name", "SFT"]) == 0
    stage = ["-c", str(CONFIGS / "objective/softmax_dpo.yaml"), "--model.init_from", str(first), "--name", "S-DPO"]
    assert main(["fit", *FILES, *stage, *fast, *QUIET, "--out", str(second)]) == 0

    record = json.loads((second / "record.json").read_text())
    assert record["guards"]["frozen_unchanged"] is True
    assert record["guards"]["reloaded_score_difference"] == 0
    (ancestor,) = record["guards"]["lineage"]
    assert (ancestor["run"], ancestor["model"], ancestor["steps"]) == ("first", "LoRATuning", 2)
    (table,) = build_tables(read_suite(tmp_path / "grid"))[0]
    assert "S-DPO starts from first (LoRATuning, 2 steps)." in table.notes

    shutil.rmtree(first)  # what a method of its own has trained is in the checkpoint
    checkpoint = second / "checkpoints" / record["guards"]["tested_checkpoint"]
    words = ["-c", str(second / "config.yaml"), "--ckpt_path", str(checkpoint), QUIET[0]]
    assert main(["test", *words, "--out", str(tmp_path / "again")]) == 0
    again = json.loads((tmp_path / "again" / "record.json").read_text())
    assert again["metrics"] == record["metrics"]
    assert again["guards"]["lineage"] == record["guards"]["lineage"]


def test_what_a_run_cannot_start_from(
    tiny_causal: Path, mini_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_of("AdapterTuning", tiny_causal, tmp_path / "adapter", bottleneck=2)
    cases = {"adapter": "it is of AdapterTuning, and LoRATuning starts from", "gone": "not a run or a checkpoint"}
    for name, message in cases.items():
        words = [f"--model.backbone={tiny_causal}", f"--model.init_from={tmp_path / name}", f"--out={tmp_path / 'run'}"]
        said = refusal(["fit", *FILES, *words, *QUIET], capsys)
        assert message in said
        assert f"model.init_from {tmp_path / name}: " in said


def test_an_adapter_on_a_full_run_is_exported_as_a_whole_model_alone(
    tiny_causal: Path, mini_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_of("FullTuning", tiny_causal, tmp_path / "full")
    checkpoint = run_of("LoRATuning", tiny_causal, tmp_path / "lora", init_from=str(tmp_path / "full"))
    assert main(["export", str(checkpoint), "--out", str(tmp_path / "out")]) == 2
    assert "it was tuned on the weights of model.init_from; use --merge" in capsys.readouterr().err
    assert main(["export", str(checkpoint), "--merge", "--out", str(tmp_path / "out")]) == 0
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        assert (merged(TOKENS).logits[0].log_softmax(-1) - ours(checkpoint)).abs().max() < 1e-4
