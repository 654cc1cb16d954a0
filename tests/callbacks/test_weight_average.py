"""Averages of weights, against a loop over the weights of each step."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader

from callbacks.weight_average import WeightAverage
from datamodules.contract.errors import InputError

pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("UserWarning", "FutureWarning")]
STEPS = 8


class Model(L.LightningModule):
    """Notes its weights after every step, and those that are validated."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1, bias=False)
        self.layer.weight.data.fill_(2.0)
        self.steps, self.validated = list[float](), list[float]()

    def trained(self) -> dict[str, torch.nn.Parameter]:
        return dict(self.named_parameters())

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return ((self.layer(batch) + batch) ** 2).mean()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.steps.append(float(self.layer.weight))

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.validated.append(float(self.layer.weight))
        self.log("loss", -float(len(self.validated)))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.3)

    def val_dataloader(self) -> Any:
        return DataLoader(torch.ones(1, 1))


def fit(folder: Path, *callbacks: L.Callback) -> Model:
    model = Model()
    best = ModelCheckpoint(folder, filename="best", monitor="loss", save_weights_only=True)
    trainer = L.Trainer(
        default_root_dir=folder,
        callbacks=[best, *callbacks],
        max_steps=STEPS,
        val_check_interval=3,
        check_val_every_n_epoch=None,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, DataLoader(torch.linspace(0.5, 2, 4)[:, None]))
    return model


def averages(steps: list[float], decay: float | None, begin: int) -> list[float]:
    """After each step; before the first that counts, the weights themselves."""
    made, mean = list[float](), 0.0
    for number, value in enumerate(steps):
        count = number - begin
        if count < 0:
            made.append(value)
            continue
        if decay is None:
            mean = sum(steps[begin : number + 1]) / (count + 1)
        else:
            kept = min(decay, (1 + count) / (10 + count))
            mean = value if count == 0 else kept * mean + (1 - kept) * value
        made.append(mean)
    return made


@pytest.mark.parametrize(("decay", "start", "begin"), [(0.3, 0.0, 0), (0.15, 0.0, 0), (None, 0.0, 0), (None, 0.5, 4)])
def test_the_average_is_validated_saved_and_left(tmp_path: Path, decay: float | None, start: float, begin: int) -> None:
    plain = fit(tmp_path / "plain")
    model = fit(tmp_path / "average", WeightAverage(decay, start))
    assert model.steps == plain.steps, "training goes on with its own weights"
    expected = averages(plain.steps, decay, begin)
    assert float(model.layer.weight) == pytest.approx(expected[-1], abs=1e-6)
    assert model.validated[-2:] == pytest.approx([expected[2], expected[5]], abs=1e-6)
    best = torch.load(tmp_path / "average/best.ckpt", weights_only=True)["state_dict"]["layer.weight"]
    assert float(best) == pytest.approx(model.validated[-1], abs=0), "what was validated"


@pytest.mark.parametrize("inside", [False, True])
def test_a_continued_run_has_the_same_average(inside: bool) -> None:
    """Saved before a batch, or while the average is in the model for a validation."""

    def step(callback: WeightAverage, model: Model, number: int) -> None:
        trainer: Any = SimpleNamespace(
            global_step=number, estimated_stepping_batches=6, sanity_checking=False, state=SimpleNamespace(fn="fit")
        )
        callback.on_train_batch_start(trainer, model, None, 0)
        model.layer.weight.data += number
        callback.on_train_batch_end(trainer, model, None, None, 0)
        if inside and number == 3:
            callback.on_validation_start(trainer, model)

    one, model = WeightAverage(0.5), Model()
    for number in range(1, 4):
        step(one, model, number)
    file = io.BytesIO()
    torch.save({"callback": one.state_dict(), "model": model.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other, again = WeightAverage(0.5), Model()
    other.load_state_dict(saved["callback"])
    again.load_state_dict(saved["model"])
    ends = []
    for callback, each in ((one, model), (other, again)):
        for number in range(4, 7):
            step(callback, each, number)
        trained = float(each.layer.weight)
        callback.on_train_end(SimpleNamespace(), each)  # type: ignore[arg-type]
        ends.append((trained, float(each.layer.weight)))
    assert ends[0] == ends[1]
    assert ends[0][0] == 2.0 + sum(range(1, 7))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"decay": 1.0}, r"WeightAverage\.decay is 1\.0"), ({"start": 1.0}, r"WeightAverage\.start is 1\.0")],
)
def test_impossible_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        WeightAverage(**options)
