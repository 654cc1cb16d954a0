"""A PEFT method's checkpoint under another seed: the same scores, or refused; never other scores without a word."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch
import yaml

from callbacks.training_guard import load_trained
from datamodules.contract.errors import InputError
from recmodels.methods.peft import PeftTuning
from tests.recmodels.oracle import CASES, save, tree_batch

CONFIGS = sorted((Path(__file__).resolve().parents[3] / "configs/model/peft").rglob("*.yaml"))
pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("UserWarning", "DeprecationWarning")]


def made(path: Path, backbone: Path, seed: int) -> PeftTuning:
    told = yaml.safe_load(path.read_text())["model"]["init_args"]["peft_config"]
    torch.manual_seed(seed)
    config = getattr(peft, told["class_path"])(**told.get("init_args", {}))
    model = PeftTuning(config, backbone=str(backbone))
    model.configure_model()
    model.log = lambda *a, **k: None  # type: ignore[method-assign]
    return model


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_a_checkpoint_comes_back_or_is_refused(path: Path, tiny_causal: Path, tmp_path: Path) -> None:
    """Under its own seed it comes back: a cell of the table of families."""
    batch = tree_batch(CASES, 200, 2048)
    model = made(path, tiny_causal, 1)
    optimizer = torch.optim.AdamW(model.trained().values(), lr=0.01)
    for _ in range(2):
        model.training_step(batch, 0).backward()
        optimizer.step()
    save(model, tmp_path / "a.ckpt")
    fresh = made(path, tiny_causal, 2)
    torch.manual_seed(9)
    try:
        load_trained(fresh, tmp_path / "a.ckpt")
    except InputError as error:
        assert "seed_everything" in str(error)
        return
    with torch.no_grad():
        torch.testing.assert_close(fresh.eval().score(batch), model.eval().score(batch), atol=1e-4, rtol=1e-5)
