"""Impossible tunings at the command line: one line that names what would work, exit code 2, before any training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from benchmarks.paths import CONFIGS
from tests.benchmarks.cli.refusals import refusal
from tests.benchmarks.commands.exported import run_of

WARNINGS = ("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
pytestmark = [pytest.mark.filterwarnings(rule) for rule in WARNINGS]


@pytest.mark.parametrize(
    ("method", "options", "names"),
    [
        ("prefix", ["--model.length=512"], "model.length is 512, the backbone's context 512; at most 511 works"),
        (
            "peft/prefix",
            ["--model.peft_config.num_virtual_tokens=600"],
            "num_virtual_tokens is 600, the backbone's context 512; at most 511 works",
        ),
        ("lora", ["--model.targets=[q_prj]"], "model.targets names 'q_prj', which matches nothing"),
        ("lora", ["--model.targets=[q_prj]"], "the nearest is 'q_proj'"),
        ("lora", ["--model.r=17"], "model.r is 17, above the width 16 of the narrowest target; at most 16 works"),
        ("adalora", ["--model.targets=[q_prj]"], "model.targets names 'q_prj', which matches nothing"),
        ("peft/rslora", ["--model.peft_config.target_modules=[qproj]"], "matches nothing in backbone"),
        ("adapter", ["--model.reduction_factor=64"], "model.reduction_factor is 64, must be 1 to the width, 32"),
    ],
)
def test_what_does_not_fit_the_backbone(
    method: str,
    options: list[str],
    names: str,
    tiny_causal: Path,
    mini_data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    files = ["-c", str(CONFIGS / f"model/{method}.yaml"), "-c", str(CONFIGS / "data/ml_100k.yaml")]
    quiet = [f"--model.backbone={tiny_causal}", "--trainer.logger=false", f"--out={tmp_path / 'run'}"]
    assert names in refusal(["fit", *files, *quiet, *options], capsys)


def test_checkpoints_of_another_method_or_backbone(
    tiny_causal: Path, mini_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whether a checkpoint is used as a run's result or exported, the line says whose config to take."""
    other = tmp_path / "other"
    shutil.copytree(tiny_causal, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"attention_bias": True}))  # new, random weights
    lora = run_of("LoRATuning", tiny_causal, tmp_path / "lora")
    adapter = run_of("AdapterTuning", tiny_causal, tmp_path / "adapter")
    elsewhere = run_of("LoRATuning", other, tmp_path / "elsewhere")
    own = "use its run's own config.yaml"
    cases: list[tuple[Path, Any]] = [
        (adapter, "the checkpoint is of AdapterTuning, not LoRATuning"),
        (elsewhere, "the checkpoint was trained on backbone weights"),
    ]
    for checkpoint, names in cases:
        words = ["-c", str(lora.parent.parent / "config.yaml"), "--ckpt_path", str(checkpoint)]
        said = refusal(["test", *words, "--trainer.logger=false", "--out", str(tmp_path / "again")], capsys)
        assert names in said
        assert said.endswith(own)
