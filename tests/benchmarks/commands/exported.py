"""Runs as `fit` leaves them, and what they and their exports say about the same tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.commands.export import load_run_model
from datamodules.contract.checkpoints import write_checkpoint
from datamodules.contract.items import ItemTokens

TOKENS = torch.tensor([[3, 5, 1, 7, 9, 20, 31, 40, 2, 11]])
CONFIG = """
seed_everything: 1
trainer: {{precision: 32-true}}
model: {{class_path: {name}, init_args: {{backbone: {backbone}{more}}}}}
data: {{class_path: MovieLens100K}}
"""


def run_of(
    name: str, backbone: Path, folder: Path, more: str = "", items: ItemTokens | None = None, **options: Any
) -> Path:
    """A run's folder as `fit` leaves it, with weights that are far from their start; returns the checkpoint."""
    import recmodels

    torch.manual_seed(3)
    model = getattr(recmodels, name)(backbone=str(backbone), **options)
    model.item_tokens = items
    model.configure_model()
    for value in model.trained().values():
        nn.init.normal_(value, std=0.1)
    (folder / "checkpoints").mkdir(parents=True)
    more += "".join(f", {key}: {json.dumps(value)}" for key, value in options.items())
    (folder / "config.yaml").write_text(CONFIG.format(name=name, backbone=backbone, more=more))
    (folder / "record.json").write_text(json.dumps({"name": "row", "metrics": {"test/hr@5": 0.25}, "seed": 7}))
    checkpoint: dict[str, Any] = {"state_dict": model.state_dict()}
    model.on_save_checkpoint(checkpoint)
    path = folder / "checkpoints" / "best.ckpt"
    write_checkpoint(checkpoint, path)
    return path


def ours(checkpoint: Path) -> torch.Tensor:
    """Log-probabilities of `TOKENS` by the model that this project loads from a checkpoint."""
    model = load_run_model(checkpoint, checkpoint.parent.parent / "config.yaml", [])
    hidden = model.backbone.hidden_states(TOKENS[0], torch.full((10,), 10), torch.arange(10), 1, (1, 10))
    return model.backbone.head(hidden).log_softmax(-1)


def as_the_card_says(folder: Path, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits that the lines of a folder's card give; nothing else of this project takes part."""
    code = (folder / "README.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    assert "recmodels" not in code
    names: dict[str, Any] = {"folder": str(folder), "inputs": inputs}
    with torch.no_grad():
        exec(compile(code, "README.md", "exec"), names)
    logits: torch.Tensor = names["logits"]
    return logits
