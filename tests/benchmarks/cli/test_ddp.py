"""Two processes on one machine (DDP on the CPU) give what one process gives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[3]


def fit(out: Path, model: str, backbone: Path, *options: str) -> tuple[dict[str, Any], Any]:
    """One run as a process of its own, as DDP starts the second one from the command line of the first."""
    command = [sys.executable, "-m", "benchmarks", "fit", "-c", f"configs/model/{model}.yaml"]
    command += ["-c", "configs/data/ml_100k.yaml", f"--model.backbone={backbone}", "--out", str(out)]
    command += ["--trainer.accelerator=cpu", "--trainer.logger=false", "--data.protocol.negatives=6", *options]
    done = subprocess.run(command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((out / "record.json").read_text()), np.load(out / "scores.npz", allow_pickle=False)


@pytest.mark.usefixtures("mini_data")
def test_two_processes_give_the_metrics_of_one(tmp_path: Path, tiny_causal: Path) -> None:
    """A step of two processes is a step of one that accumulates two batches: the same windows, the same mean."""
    steps = ["--trainer.max_steps=3", "--data.batch_size=2"]
    alone = ["--trainer.accumulate_grad_batches=2", "--trainer.val_check_interval=6"]
    one, scores = fit(tmp_path / "one", "lora", tiny_causal, *steps, *alone)
    both = ["--trainer.strategy=ddp", "--trainer.devices=2", "--trainer.val_check_interval=3"]
    two, others = fit(tmp_path / "two", "lora", tiny_causal, *steps, *both)
    assert (one["device"]["processes"], two["device"]["processes"]) == (1, 2)
    assert one["protocol"]["fingerprint"] == two["protocol"]["fingerprint"]
    assert scores["user"].tolist() == others["user"].tolist()
    assert scores["item"].tolist() == others["item"].tolist()
    np.testing.assert_allclose(others["score"], scores["score"], rtol=1e-3, atol=1e-3)
    assert one["metrics"].keys() == two["metrics"].keys()
    for name, value in one["metrics"].items():
        assert two["metrics"][name] == pytest.approx(value, abs=1e-6), name
    assert one["guards"]["parameters_moved"] > 0
