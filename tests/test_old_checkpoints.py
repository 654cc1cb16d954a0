"""Checkpoints of every release load in this version, or it says why not.

One small checkpoint of each tuning method and release lies in `golden/`, `checkpoint-<release>-<method>.ckpt`. Its
backbone is made here from whole numbers, so that it is the same on every machine.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config

import recmodels
from callbacks.training_guard import load_trained
from datamodules.contract.batch import TaggedTextBatch
from recmodels.base import Recommender
from tests.recmodels.oracle import tree_batch

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden"
NAME = re.compile(r"checkpoint-(?P<release>[\w.]+)-(?P<method>\w+)\.ckpt")
FILES = sorted(GOLDEN.glob("checkpoint-*.ckpt"))
REASON = os.environ.get("INSTRUCTREC_GOLDEN_REASON", "")
"""Set to a reason, the checkpoints of the present release are written anew. Those of a release stay as they are."""

REFUSED: dict[tuple[str, str], str] = {}
"""Of a release and a method: words of the message that says why its checkpoints do not load."""
OPTIONS: dict[str, dict[str, Any]] = {
    "LoRATuning": {"r": 2},
    "AdapterTuning": {"bottleneck": 2},
    "PrefixTuning": {"length": 2},
    "PartialTuning": {"layers": 1},
    "PeftTuning": {"peft_config": IA3Config()},
}
METHODS = sorted(
    name
    for name in recmodels.__all__
    if getattr(recmodels, name).trains and getattr(recmodels, name).kind != "reference"
)


def release() -> str:
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"])


@torch.no_grad()
def fill(parameters: Any, seed: int) -> None:
    """Whole numbers modulo a prime, so that no library's random numbers count."""
    for number, value in enumerate(parameters):
        place = torch.arange(value.numel(), dtype=torch.int64)
        made = (place * 7919 + number * 104_729 + seed) % 1009
        value.copy_(((made.float() - 504) / 2048).view_as(value))


@pytest.fixture(scope="module")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

    size: dict[str, Any] = {"vocab_size": 32, "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
    made = {
        "prompt_tree": LlamaForCausalLM(LlamaConfig(**size, num_hidden_layers=1, max_position_embeddings=64)),
        "tagged_text": BertModel(BertConfig(**size, num_hidden_layers=1, max_position_embeddings=64)),
    }
    folders = {}
    for batch_format, model in made.items():
        fill(model.parameters(), 0)
        folders[batch_format] = tmp_path_factory.mktemp(batch_format)
        model.save_pretrained(folders[batch_format])
    return folders


def build(method: str, backbones: dict[str, Path]) -> Recommender:
    cls = getattr(recmodels, method)
    model: Recommender = cls(backbone=str(backbones[cls.batch_format]), **OPTIONS.get(method, {}))
    model.configure_model()
    return model


def digest(model: Recommender) -> str:
    """SHA-256 over the names and values that a checkpoint keeps."""
    state, made = model.state_dict(), hashlib.sha256()
    for name in sorted(model.checkpoint_keys()):
        made.update(name.encode())
        made.update(state[name].detach().float().contiguous().numpy().tobytes())
    return made.hexdigest()


@torch.no_grad()
def scores(model: Recommender) -> list[float]:
    """Of three branches: equal parameters that are used otherwise (keys as values) give other scores."""
    if model.batch_format == "prompt_tree":
        batch: Any = tree_batch([([5, 6, 7], [[8, 9], [10]]), ([3, 4], [[11, 12]])], 64, 1 << 20)
    else:
        row, length = torch.tensor([5, 6, 7, 8, 9, 10]), torch.arange(6)
        batch = TaggedTextBatch(
            case=torch.tensor([0]),
            branch_case=torch.tensor([0, 0, 0]),
            branch_item=torch.arange(3),
            relevance=torch.tensor([1.0, 0.0, 0.0]),
            answers="candidates",
            token=row[None],
            attention=torch.ones(1, 6, dtype=torch.bool),
            segment=torch.zeros(1, 6, dtype=torch.long),
            position=length[None],
            branch=torch.tensor([[-1, -1, 0, 1, 1, 2]]),
            tokens=6,
            truncated=0,
        )
    return [float(value) for value in model.eval()(batch)]


@pytest.fixture(autouse=True, scope="module")
def _write(backbones: dict[str, Path]) -> None:
    for method in METHODS if REASON else ():
        write(method, backbones)


def write(method: str, backbones: dict[str, Path]) -> None:
    model = build(method, backbones)
    fill(model.trained().values(), 1)
    checkpoint: dict[str, Any] = {"state_dict": model.state_dict()}
    model.on_save_checkpoint(checkpoint)
    path = GOLDEN / f"checkpoint-{release()}-{method}.ckpt"
    checkpoint["state_dict"] = {name: value.clone() for name, value in checkpoint["state_dict"].items()}
    torch.save(checkpoint, path)
    sums = GOLDEN / "checkpoints.json"
    known = json.loads(sums.read_text()) if sums.exists() else {}
    known[path.name] = {"kept": digest(model), "reason": REASON, "scores": scores(model)}
    sums.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_checkpoint_of_a_release_loads_or_says_why_not(path: Path, backbones: dict[str, Path]) -> None:
    found = NAME.fullmatch(path.name)
    assert found
    model = build(found["method"], backbones)
    with torch.no_grad():
        for value in model.trained().values():
            value.fill_(float("nan"))
    if why := REFUSED.get((found["release"], found["method"])):
        with pytest.raises(ValueError, match=why):
            load_trained(model, path)
        return
    load_trained(model, path)
    expected = json.loads((GOLDEN / "checkpoints.json").read_text())[path.name]
    assert digest(model) == expected["kept"]
    assert scores(model) == pytest.approx(expected["scores"], abs=1e-5)
    assert path.stat().st_size < 50_000


def test_every_release_has_a_checkpoint_of_every_method() -> None:
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    releases = {release(), *re.findall(r"^## \[?(\d+\.\d+\.\d+)", changes, flags=re.MULTILINE)}
    there = {(m["release"], m["method"]) for path in FILES if (m := NAME.fullmatch(path.name))}
    assert {one for one, _ in there} == releases, "write the checkpoints of a release before it is made"
    present = {method for one, method in there if one == release()}
    assert present == set(METHODS), f"INSTRUCTREC_GOLDEN_REASON='...' pytest {__file__}"
