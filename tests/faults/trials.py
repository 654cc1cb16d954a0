"""Runs of every tuning variant that are killed and continued, and the comparison with one that was not."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.faults.warm import ROOT, Warm

STEPS, EPOCH, VALIDATE, SAVE = 20, 6, 5, 3
CONFIGS = ROOT / "configs"
VARIANTS = {
    "full": ["full", "ml_100k", "--model.dropout=0.1"],
    "lora": ["lora", "ml_100k", "--model.lora_dropout=0.1"],
    "adapter": ["adapter", "ml_100k", "--model.adapter_dropout=0.1", "--model.bottleneck=4"],
    "prefix": ["prefix", "ml_100k", "--model.dropout=0.1", "--model.length=3"],
    "partial": ["partial/top_layers", "ml_100k", "--model.dropout=0.1", "--model.layers=1"],
    "adalora": ["adalora", "ml_100k", "--model.init_r=4", "--model.target_r=2"],
    "peft": ["peft/ia3", "ml_100k", "--model.dropout=0.1"],
    "token_classification": ["token_classification", "ml_100k", "--model.dropout=0.1"],
    "listwise": ["lora", "ml_100k", "--model.objective=listwise", "--data.train_negatives=3"],
    "encoder_decoder": ["lora", "ml_100k", "--model.dropout=0.1"],
    "yes_no": ["lora", "ml_100k_like", "--model.objective=yes_no", "--model.dropout=0.1"],
    "mixture": ["lora", "ml_100k_mixture", "--model.lora_dropout=0.1"],
    "gradual": ["partial/gradual", "ml_100k", "--model.dropout=0.1"],
    "lora_plus": ["lora_plus", "ml_100k", "--model.lora_dropout=0.1"],
    "sasrec": ["sasrec", "ml_100k", "--model.dimensions=8"],
    "sasrec_bce": ["sasrec_bce", "ml_100k", "--model.dimensions=8"],
    "bert4rec": ["bert4rec", "ml_100k", "--model.dimensions=8"],
    "bpr": ["bpr", "ml_100k", "--model.dimensions=8"],
}
"""Model file, data file, options; dropout is on wherever the architecture has one."""
SEQUENCES = ("sasrec", "sasrec_bce", "bert4rec", "bpr")
"""Those that read item codes, and no backbone."""


@dataclass
class Runs:
    """Where runs are made.

    Attributes:
        warm: makes them.
        data: folder of the raw data.
        causal: folder of the tiny causal backbone.
        encoder: of the tiny encoder.
        t5: of the tiny encoder-decoder.
    """

    warm: Warm
    data: Path
    causal: Path
    encoder: Path
    t5: Path
    whole: dict[str, Path] = field(default_factory=dict)

    def command(self, variant: str, out: Path, *extra: str) -> list[str]:
        """A fit of the variant."""
        model, data, *options = VARIANTS[variant]
        special = {"token_classification": self.encoder, "encoder_decoder": self.t5}
        backbone = [] if variant in SEQUENCES else [f"--model.backbone={special.get(variant, self.causal)}"]
        return [
            "fit",
            *(
                "-c",
                str(CONFIGS / "model" / f"{model}.yaml"),
                "-c",
                str(CONFIGS / "data" / f"{data}.yaml"),
                "--out",
                str(out),
            ),
            *backbone,
            *options,
            *("--trainer.precision=32-true", "--trainer.deterministic=true", "--trainer.log_every_n_steps=1"),
            *(f"--trainer.max_steps={STEPS}", f"--trainer.val_check_interval={VALIDATE}"),
            *(f"--resume.every_n_steps={SAVE}", "--data.protocol.negatives=5", "--data.batch_size=4"),
            *("-c", str(Path(__file__).with_name("csv_only.yaml")), "--model.warmup=0.3"),
            *extra,
        ]

    def uninterrupted(self, variant: str, folder: Path, *extra: str) -> Path:
        """The run that all others are compared with; made once."""
        key = " ".join([variant, *extra])
        if key not in self.whole:
            out = folder / "whole"
            log = folder / "whole.log"
            code = self.warm.run(log, self.command(variant, out, *extra), trace=str(trace_of(out)))
            assert code == 0, log.read_text()
            assert steps_of(trace_of(out))
            self.whole[key] = out
        return self.whole[key]


def steps_of(trace: Path) -> list[dict[str, Any]]:
    """The steps a trace has seen, a step that was taken again as often as it was."""
    return [json.loads(line) for line in trace.read_text().splitlines()] if trace.exists() else []


def trace_of(out: Path) -> Path:
    """Where the uninterrupted run's trace lies."""
    return out.with_suffix(".trace")


def strayed(trace: Path, whole: Path) -> list[str]:
    """Steps that were not as in the uninterrupted run, and in what."""
    right = {row["step"]: row for row in steps_of(trace_of(whole))}
    return [
        f"step {row['step']}: {', '.join(k for k in row if row[k] != right[row['step']][k])}"
        for row in steps_of(trace)
        if row != right[row["step"]]
    ]


def differences(out: Path, whole: Path) -> list[str]:
    """What a finished run has that differs from the uninterrupted one."""
    found = []
    one, other = (json.loads((folder / "record.json").read_text()) for folder in (out, whole))
    if one["status"] != "finished":
        return [f"status {one['status']}: {one['error']}"]
    for part in ("metrics", "samples"):
        if one[part] != other[part]:
            found.append(part)
    for cost in ("train_steps", "train_tokens", "trainable_parameters"):
        if one["costs"].get(cost) != other["costs"].get(cost):
            found.append(f"{cost}: {one['costs'].get(cost)} and {other['costs'].get(cost)}")
    if one["guards"]["truncated_prompts"] != other["guards"]["truncated_prompts"]:
        found.append("truncated_prompts")
    first, second = (np.load(folder / "scores.npz", allow_pickle=False) for folder in (out, whole))
    found += [name for name in second.files if first[name].tobytes() != second[name].tobytes()]
    for name in ("best.ckpt", "last.ckpt"):
        mine, theirs = (
            torch.load(folder / "checkpoints" / name, weights_only=True)["state_dict"] for folder in (out, whole)
        )
        if mine.keys() != theirs.keys() or any(not torch.equal(mine[key], theirs[key]) for key in mine):
            found.append(name)
    logs = [list(csv.DictReader((folder / "metrics.csv").read_text().splitlines())) for folder in (out, whole)]
    if logs[0] != logs[1]:
        found.append(f"metrics.csv: {len(logs[0])} and {len(logs[1])} rows")
    if (out / "resume").exists():
        found.append("the finished run keeps its resume folder")
    return found
