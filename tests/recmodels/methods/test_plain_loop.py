"""A run in our loop equals a plain PyTorch + PEFT loop step by step: Lightning hides nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import peft
import pytest
import torch
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM

from datamodules.contract.batch import PromptTreeBatch
from recmodels.methods.base import InstructionRecommender
from recmodels.methods.lora import LoRATuning
from recmodels.methods.peft import PeftTuning
from tests.recmodels.oracle import Case, tree_batch

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
STEPS: list[list[Case]] = [
    [([5, 9, 17, 3, 22], [[7, 8]]), ([5, 9, 40, 41], [[12, 6, 2]])],
    [([5, 9, 30], [[4, 14]]), ([33, 21, 40, 11], [[19]])],
    [([8, 9, 10, 11, 12], [[13, 14, 15]])],
] * 2
RATE = 0.01


class Losses(L.Callback):
    """The loss of every step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_end(self, trainer: Any, model: Any, outputs: Any, batch: Any, index: int) -> None:
        self.seen.append(float(outputs["loss"]))


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=RATE)


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*smaller than the logging interval")
@pytest.mark.filterwarnings("ignore:.*in eval mode", "ignore:.*batch_size", "ignore:.*`train_dataloader`")
@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec", "ignore:.*has no .logger. configured")
@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
# PEFT's own prefix, the oracle here, calls transformers 5.24 by an older name.
@pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning")
@pytest.mark.parametrize("method", ["lora", "ia3", "prefix"])
def test_losses_equal_those_of_a_plain_loop(tiny_causal: Path, method: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    given: dict[str, Any] = {"backbone": str(tiny_causal), "schedule": "constant", "warmup": 0.0, "optimizer": adam}
    model: InstructionRecommender = {
        "lora": lambda: LoRATuning(r=4, **given),
        "ia3": lambda: PeftTuning(peft.IA3Config(), **given),
        "prefix": lambda: PeftTuning(peft.PrefixTuningConfig(num_virtual_tokens=4), **given),
    }[method]()
    model.configure_model()
    config, state = model.peft_parts()
    config.inference_mode = False
    plain = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_causal, dtype=torch.float32), config)
    peft.set_peft_model_state_dict(plain, state)  # the same start

    losses = Losses()
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=[losses],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    batches: list[PromptTreeBatch] = [tree_batch(step, 200, 2048) for step in STEPS]
    trainer.fit(model, DataLoader(batches, batch_size=None, shuffle=False))  # type: ignore[arg-type]

    trained = [value for value in plain.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, foreach=False, fused=False)
    expected = []
    plain.train()
    for step in STEPS:
        right = [(prompt, answers[0]) for prompt, answers in step]
        total = sum(len(answer) for _, answer in right)
        loss = torch.zeros(())
        for prompt, answer in right:
            logits = plain(input_ids=torch.tensor([prompt + answer]), use_cache=False).logits[0, -len(answer) - 1 : -1]
            loss = loss + torch.nn.functional.cross_entropy(logits, torch.tensor(answer), reduction="sum") / total
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        expected.append(float(loss.detach()))
    assert len(set(losses.seen)) == len(STEPS)
    # To 1e-6 of the loss: what float32 keeps of a sum of logarithms.
    assert losses.seen == pytest.approx(expected, rel=1e-6, abs=1e-6)
