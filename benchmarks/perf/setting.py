"""What every side of a comparison is given: the same model, data, precision, threads and examples."""

from __future__ import annotations

import os
import re
import warnings
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from datamodules import MovieLens100K
from datamodules.contract.errors import InputError
from datamodules.instructions.slates import Slate, WindowOptions
from datamodules.protocol.rules import Protocol
from datamodules.sources.pretrained import load_tokenizer, pretrained_folder

Pair = tuple[list[int], list[int]]
"""Token ids of a prompt and of one answer."""

Device = Literal["cpu", "cuda"]
Precision = Literal["bfloat16", "float32"]

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "initializer_range": 0.2,  # so that a random model has opinions
}
"""Sizes of a quick run's model."""

EXPECTED_WARNINGS = (
    "gradient_checkpointing` is deprecated",  # of transformers 5.23; PEFT 0.21 and TRL 1.16 still use the name
    "You defined a `validation_step` but have no `val_dataloader`",  # nothing is validated here
)


@dataclass(frozen=True)
class Setting:
    """One run's settings; every side gets the same.

    Attributes:
        backbone: packaged name, folder or hub id.
        device: where all sides run.
        precision: of all sides' weights and products.
        threads: of torch's matrix products, on every side.
        repetitions: timed turns of each side, after one that warms up.
        history: most events in a prompt.
        seed: of the users and windows that are drawn.
        quick: the smallest sizes that still exercise everything; its times mean nothing.
        share: of the usual users and windows in a turn, for slow machines.
    """

    backbone: str = "smollm2-135m-instruct"
    device: Device = "cpu"
    precision: Precision = "bfloat16"
    threads: int = 2
    repetitions: int = 3
    history: int = 20
    seed: int = 1
    quick: bool = False
    share: float = 1.0

    @property
    def dtype(self) -> torch.dtype:
        """Of the peers' weights."""
        return torch.bfloat16 if self.precision == "bfloat16" else torch.float32

    @property
    def lightning(self) -> Literal["bf16-mixed", "32-true"]:
        """The precision as Lightning names it."""
        return "bf16-mixed" if self.precision == "bfloat16" else "32-true"

    def part(self, count: int) -> int:
        """The share of a number of users or windows, at least one.

        Example:
            >>> Setting(share=0.25).part(16), Setting(share=0.25).part(2)
            (4, 1)
        """
        return max(1, round(count * self.share))

    def apply(self) -> None:
        """Sets this process up; called once on every side."""
        from benchmarks.cli.app import quieten

        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core of tokenising is one core
        quieten()
        for message in EXPECTED_WARNINGS:
            warnings.filterwarnings("ignore", message=f".*{message}.*")
        torch.set_num_threads(self.threads)
        torch.manual_seed(self.seed)

    def data(
        self, task: Literal["matching", "like"], *, negatives: int = 19, targets: int = 1, shared: bool = False
    ) -> MovieLens100K:
        """The data module that all sides take their examples from, set up."""
        data = MovieLens100K(
            task=task,
            backbone=self.backbone,
            protocol=Protocol(history=self.history, negatives=negatives),
            windows=WindowOptions(targets, "shared" if shared else "growing", train_negatives=0),
        )
        data.setup()
        return data

    def draw(self, choices: Sequence[int], count: int) -> list[int]:
        """Some of the choices, drawn by the seed, all different."""
        return [int(i) for i in np.random.default_rng(self.seed).permutation(np.asarray(choices))[:count]]


def answered(data: MovieLens100K, slates: Sequence[Slate]) -> list[Pair]:
    """Prompt and right answer of each slate, as the peers read them."""
    pairs = []
    for slate, encoded in zip(slates, data.collator.slates.encode(slates), strict=True):  # type: ignore[union-attr]
        _, gain = data.collator.text.branches(slate)
        pairs.append((list(encoded.prompt), list(encoded.answers[int(np.argmax(gain))])))
    return pairs


def adapter_key(name: str) -> str:
    """Name of an adapter's weight whatever wraps the model: from the number of its block on.

    Example:
        >>> adapter_key("base_model.model.model.layers.3.mlp.up_proj.lora_A.default.weight")
        '3.mlp.up_proj.lora_A.default.weight'
    """
    match = re.search(r"(?<=\.)\d+\..*", name)
    return match[0] if match else name


@torch.no_grad()
def fill_adapters(named: Iterable[tuple[str, nn.Parameter]]) -> None:
    """Gives every adapter weight a small value that depends on its name alone, so that sides start equal.

    B is not left at zero, or A would get no gradient to compare.
    """
    for name, value in named:
        generator = torch.Generator().manual_seed(zlib.crc32(adapter_key(name).encode()))
        value.copy_(0.02 * torch.randn(value.shape, generator=generator))


def flat_gradient(named: Iterable[tuple[str, nn.Parameter]]) -> np.ndarray[Any, Any]:
    """Gradients of all trained parameters as one vector, in an order that depends on their names alone."""
    gradients = {adapter_key(name): value.grad for name, value in named if value.requires_grad}
    parts: list[Tensor] = [g.detach().float().flatten().cpu() for _, g in sorted(gradients.items()) if g is not None]
    return torch.cat(parts).numpy()


def load_plain(setting: Setting) -> Any:
    """The backbone as any user of transformers loads it, with SDPA, for the peers."""
    from transformers import AutoModelForCausalLM

    folder = pretrained_folder(setting.backbone)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=setting.dtype, attn_implementation="sdpa", trust_remote_code=False
    )
    model.generation_config = type(model.generation_config)()
    return model.to(setting.device)


def shrink_backbone(name: str, folder: Path) -> str:
    """Writes a random model of two small layers with a backbone's architecture and tokenizer, for quick runs.

    Raises:
        InputError: the architecture is not built like Llama, so that its sizes have other names.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(pretrained_folder(name), trust_remote_code=False)
    if missing := [key for key in SMALL if not hasattr(config, key)]:
        raise InputError(f"--quick cannot shrink backbone {name!r} ({config.model_type}): it has no {missing[0]}")
    config.update(SMALL)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    load_tokenizer(name).save_pretrained(folder)
    return str(folder)


def synchronise(device: Device) -> None:
    """Waits until the device has done what it was given, so that a clock read now means something."""
    if device == "cuda":
        torch.cuda.synchronize()
