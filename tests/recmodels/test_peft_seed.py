"""A PEFT method's checkpoint under another seed: the same scores, or refused; never other scores without a word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import yaml

from callbacks.training_guard import load_trained
from datamodules.movielens import MovieLens100K
from datamodules.protocol import Protocol
from datamodules.sources import InputError
from recmodels import PeftTuning

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "configs/model/peft").rglob("*.yaml"))
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
def test_a_checkpoint_comes_back_or_is_refused(path: Path, mini_data: Path, tiny_causal: Path, tmp_path: Path) -> None:
    data = MovieLens100K(backbone=str(tiny_causal), protocol=Protocol(negatives=5))
    data.setup()
    train, test = next(iter(data.train_dataloader())), next(iter(data.test_dataloader()))
    model = made(path, tiny_causal, 1)
    optimizer = torch.optim.AdamW(model.trained().values(), lr=0.01)
    for _ in range(2):
        model.training_step(train, 0).backward()
        optimizer.step()
    checkpoint: dict[str, Any] = {"state_dict": model.state_dict()}
    model.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, tmp_path / "a.ckpt")
    for seed, refusable in ((1, False), (2, True)):
        fresh = made(path, tiny_causal, seed)
        torch.manual_seed(9)
        try:
            load_trained(fresh, tmp_path / "a.ckpt")
        except InputError as error:
            assert refusable, error
            assert "seed_everything" in str(error)
            continue
        with torch.no_grad():
            torch.testing.assert_close(fresh.eval().score(test), model.eval().score(test), atol=1e-4, rtol=1e-5)
