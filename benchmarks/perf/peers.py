"""The peers of training, as their users run them: transformers' Trainer and TRL's SFTTrainer with PEFT's LoRA."""

from __future__ import annotations

import importlib.util
import tempfile
import time
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import DataCollatorForSeq2Seq, Trainer, TrainerCallback, TrainingArguments

from benchmarks.perf.measure import Side, Turn, Values
from benchmarks.perf.setting import Pair, Setting, fill_adapters, flat_gradient, load_plain, synchronise
from benchmarks.perf.workloads import ALPHA, LEARNING_RATE, NO_CLIP, RANK, WORKLOADS, draw_windows
from datamodules.contract.errors import InputError
from datamodules.sources.pretrained import load_tokenizer

TRIAL_EXAMPLES = 16
PRINTERS = ("PrinterCallback", "ProgressCallback")


class PeerSteps(TrainerCallback):
    """Times the training loop from its start to the end of its last step, and keeps the first gradient if wanted."""

    def __init__(self, setting: Setting, *, compared: bool = False) -> None:
        self.setting, self.compared = setting, compared
        self.seconds = 0.0
        self.losses: list[float] = []
        self.gradient: np.ndarray[Any, Any] | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Starts the clock."""
        synchronise(self.setting.device)
        self._began = time.perf_counter()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Keeps the gradient."""
        if self.compared and self.gradient is None:
            self.gradient = flat_gradient(model.named_parameters())

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Reads the clock."""
        synchronise(self.setting.device)
        self.seconds = time.perf_counter() - self._began

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        """Keeps the losses."""
        if logs and "loss" in logs:
            self.losses.append(float(logs["loss"]))


class PeerTraining(Side):
    """A side that trains with a trainer of somebody else; a subclass says which, and which settings it tries."""

    def __init__(self, setting: Setting, kind: str) -> None:
        from peft import LoraConfig, get_peft_model

        super().__init__(setting)
        self.work = draw_windows(setting, WORKLOADS[kind])
        self.tokenizer = load_tokenizer(setting.backbone)
        self.base = load_plain(setting)
        lora = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
        self.model = get_peft_model(self.base, lora)
        self.optimizer: torch.optim.Optimizer | None = None  # one for all turns, as ours has
        self._fill()

    @abstractmethod
    def choices(self) -> list[dict[str, Any]]:
        """The settings to be tried; the fastest is used."""

    @abstractmethod
    def trainer(self, examples: Sequence[Pair], choice: dict[str, Any], folder: str, *, bf16: bool) -> Trainer:
        """A trainer that takes one optimiser step over the examples, in order."""

    def prepare(self) -> None:
        """Chooses the fastest setting on some examples."""
        examples = self.work.examples(0)[:TRIAL_EXAMPLES]
        # Batches of more rows than a turn has examples are all the same.
        rows = [choice | {"rows_a_batch": min(choice["rows_a_batch"], len(examples))} for choice in self.choices()]
        choices = [choice for index, choice in enumerate(rows) if choice not in rows[:index]]
        choices = [choices[0], choices[-1]] if self.setting.quick else choices
        tried = [(0.0, choices[0])]
        if len(choices) > 1:
            self._train(examples[:2], choices[0])  # warms up
            tried = [(self._train(examples, choice).seconds, choice) for choice in choices]
        self.choice = min(tried, key=lambda pair: pair[0])[1]
        self.optimizer = None
        self.config |= self.choice | {
            "tried": [choice | {"seconds": seconds} for seconds, choice in tried],
            "examples_a_step": len(self.work.examples(0)),
            "tuning": f"PEFT LoRA r={RANK} on all linear layers",
            "precision": self.setting.precision,
            "gradient_checkpointing": False,
        }
        self._fill()

    def turn(self, repetition: int) -> Turn:
        """Takes the repetition's step."""
        examples = self.work.examples(repetition)
        steps = self._train(examples, self.choice, compared=repetition == 0)
        values = {"loss": np.array(steps.losses)}
        if steps.gradient is not None:
            values["gradient"] = steps.gradient
        return Turn(steps.seconds, len(examples), values)

    def exact(self) -> Values:
        """Loss and gradient of one window in float32, at the weights all sides began with."""
        self.model.float()
        self._fill()
        steps = self._train(self.work.examples(-1), self.choice, bf16=False, compared=True)
        if steps.gradient is None:
            raise RuntimeError("no step was taken")
        return {"loss": np.array(steps.losses), "gradient": steps.gradient}

    def arguments(self, examples: int, choice: dict[str, Any], folder: str, *, bf16: bool) -> dict[str, Any]:
        """What both trainers are told: one step over all examples in order, nothing saved or reported."""
        rows = min(choice["rows_a_batch"], examples)
        return {
            "output_dir": folder,
            "use_cpu": self.setting.device == "cpu",
            "bf16": bf16,
            "per_device_train_batch_size": rows,
            "gradient_accumulation_steps": -(-examples // rows),
            "train_sampling_strategy": "sequential",  # examples come sorted by length
            "num_train_epochs": 1,
            "learning_rate": LEARNING_RATE,
            "lr_scheduler_type": "constant",
            "weight_decay": 0.01,
            "max_grad_norm": NO_CLIP,
            "gradient_checkpointing": False,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": [],
            "disable_tqdm": True,
            "dataloader_pin_memory": self.setting.device == "cuda",
            "remove_unused_columns": False,
        }

    def _fill(self) -> None:
        fill_adapters((name, value) for name, value in self.model.named_parameters() if value.requires_grad)

    def _train(
        self, examples: Sequence[Pair], choice: dict[str, Any], *, bf16: bool | None = None, compared: bool = False
    ) -> PeerSteps:
        steps = PeerSteps(self.setting, compared=compared)
        bf16 = self.setting.precision == "bfloat16" if bf16 is None else bf16
        for wrapped in (self.model, self.base):  # by the last trainer: accelerate's autocast, TRL's fused head
            vars(wrapped).pop("forward", None)
        with tempfile.TemporaryDirectory() as folder:
            trainer = self.trainer(examples, choice, folder, bf16=bf16)
            # Printing each step's log would be a part of what is timed.
            trainer.callback_handler.callbacks = [
                c for c in trainer.callback_handler.callbacks if type(c).__name__ not in PRINTERS
            ]
            trainer.add_callback(steps)
            trainer.train()
            # Without accelerate's wrapper, which the next trainer puts round it again.
            self.optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
        return steps


def labelled(examples: Sequence[Pair]) -> list[dict[str, list[int]]]:
    """Sequences whose prompt carries no label, as TALLRec and its successors make them."""
    return [
        {
            "input_ids": [*prompt, *answer],
            "attention_mask": [1] * (len(prompt) + len(answer)),
            "labels": [-100] * len(prompt) + list(answer),
        }
        for prompt, answer in examples
    ]


class TrainerPeer(PeerTraining):
    """transformers' Trainer with padded prompts (Bao et al. 2023, TALLRec, arXiv 2305.00447, trains so)."""

    def choices(self) -> list[dict[str, Any]]:
        """Rows a batch."""
        return [{"rows_a_batch": rows} for rows in (8, 16)]

    def trainer(self, examples: Sequence[Pair], choice: dict[str, Any], folder: str, *, bf16: bool) -> Trainer:
        """Pads to the longest of a batch; labels of prompt and padding are -100."""
        self.config["collator"] = "DataCollatorForSeq2Seq, padded to the longest"
        return Trainer(
            model=self.model,
            args=TrainingArguments(**self.arguments(len(examples), choice, folder, bf16=bf16)),
            data_collator=DataCollatorForSeq2Seq(self.tokenizer, padding=True, label_pad_token_id=-100),
            train_dataset=labelled(examples),
            optimizers=(self.optimizer, None),
        )


class SFTPeer(PeerTraining):
    """TRL's SFTTrainer on completions only, padded or padding-free (whatever is faster here)."""

    def choices(self) -> list[dict[str, Any]]:
        """Rows a batch, padded, or laid end to end in one row with a block-diagonal mask."""
        padded = [{"rows_a_batch": rows, "padding_free": False} for rows in (8, 16)]
        return [*padded, {"rows_a_batch": 8, "padding_free": True}]

    def trainer(self, examples: Sequence[Pair], choice: dict[str, Any], folder: str, *, bf16: bool) -> Trainer:
        """Takes sequences tokenised beforehand, with labels on the completion only."""
        require_trl()
        from datasets import Dataset
        from trl import SFTConfig, SFTTrainer

        rows = [{"input_ids": row["input_ids"], "labels": row["labels"]} for row in labelled(examples)]
        trainer: Trainer = SFTTrainer(
            model=self.model,
            args=SFTConfig(
                **self.arguments(len(examples), choice, folder, bf16=bf16),
                max_length=None,
                padding_free=choice["padding_free"],
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=self.tokenizer,
            optimizers=(self.optimizer, None),
        )
        return trainer


def require_trl() -> None:
    """Refuses a comparison with TRL where it is not installed."""
    if importlib.util.find_spec("trl") is None:
        raise InputError("training is compared with TRL, which is not installed: pip install 'instructrec[perf]'")
