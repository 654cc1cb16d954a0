"""How far our step is from what the machine's matrix units could do, and where the rest of the time goes.

# N unique tokens, D hidden, V vocabulary, H heads, K head size
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from benchmarks.perf.compare import Say
from benchmarks.perf.measure import Side
from benchmarks.perf.profiling import group_times
from benchmarks.perf.scoring import Trees, quiet_trainer
from benchmarks.perf.setting import Setting, synchronise
from benchmarks.perf.training import OurSteps, OurTraining
from datamodules.contract.batch import PromptTreeBatch
from recmodels.backbones.causal import CausalBackbone

Passes = Literal["score", "adapters", "full"]
TARGET = 2.5
"""A training step may take so many times what its matrix work alone needs."""


@dataclass(frozen=True)
class Sizes:
    """What the arithmetic of a model depends on.

    Attributes:
        linear: weights of the body's linear layers, without embeddings and adapters.
        adapters: trained weights beside them.
        head: D * V.
        attention: layers * H * K.
        last: those of the linear ones that stand in the last feed-forward, which only predicting places need.
        last_adapters: the adapters there.
    """

    linear: int
    adapters: int
    head: int
    attention: int
    last: int = 0
    last_adapters: int = 0


def sizes_of(backbone: CausalBackbone) -> Sizes:
    """Counts a backbone's weights by what is computed with them."""
    tables = {id(m.weight) for m in backbone.body.modules() if isinstance(m, nn.Embedding)}
    matrices = [(n, v) for n, v in backbone.body.named_parameters() if v.ndim == 2 and id(v) not in tables]
    config = backbone.model.config.get_text_config()
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    last = {id(value) for value in getattr(backbone.layers()[-1], "mlp", nn.Module()).parameters()}
    return Sizes(
        linear=sum(v.numel() for n, v in matrices if "lora_" not in n),
        adapters=sum(v.numel() for n, v in matrices if "lora_" in n),
        head=config.hidden_size * config.vocab_size,
        attention=config.num_hidden_layers * heads * size,
        last=sum(v.numel() for n, v in matrices if "lora_" not in n and id(v) in last),
        last_adapters=sum(v.numel() for n, v in matrices if "lora_" in n and id(v) in last),
    )


def needed_flops(sizes: Sizes, passes: Passes, tokens: int, places: int, pairs: int) -> float:
    """Multiplications and additions that the work cannot do without.

    Forward: 2 a weight and token; the head and the last feed-forward at predicting places only; attention 4 a pair of
    tokens, head and channel.
    Backward: as much again for the gradient of the activations, and as much for that of each trained weight.

    Args:
        sizes: of the model.
        passes: `score` (forward), `adapters` (backward through frozen weights to adapters) or `full`.
        tokens: unique ones, without padding.
        places: that predict a label.
        pairs: of a token and one that it attends to.

    Example:
        >>> needed_flops(Sizes(100, 10, 50, 8), "score", tokens=3, places=1, pairs=6)
        952.0
        >>> needed_flops(Sizes(100, 10, 50, 8), "adapters", tokens=3, places=1, pairs=6)
        2156.0
        >>> needed_flops(Sizes(100, 10, 50, 8, last=20), "score", tokens=3, places=1, pairs=6)
        872.0
    """
    idle = tokens - places
    body, head = 2.0 * (sizes.linear * tokens - sizes.last * idle), 2.0 * sizes.head * places
    adapters, attention = 2.0 * (sizes.adapters * tokens - sizes.last_adapters * idle), 4.0 * sizes.attention * pairs
    weight_passes = {"score": 1, "adapters": 2, "full": 3}[passes]
    other_passes = {"score": 1, "adapters": 3, "full": 3}[passes]
    head_passes = weight_passes
    return body * weight_passes + head * head_passes + adapters * other_passes + attention * other_passes


def counts_of(batches: Sequence[PromptTreeBatch]) -> dict[str, int]:
    """Unique tokens, predicting places and attended pairs of some batches."""
    return {
        "tokens": sum(batch.tokens for batch in batches),
        "places": sum(len(torch.unique(batch.label_place)) for batch in batches),
        # A token attends to its depth + 1 ancestors, itself among them.
        "pairs": sum(int(batch.depth.sum()) + batch.tokens for batch in batches),
    }


def matrix_rate(setting: Setting, model_shapes: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """Best rate of `F.linear` over the model's own shapes, in the run's precision and on its threads."""
    rows = (256, 1024) if setting.device == "cpu" else (4096, 16384)
    best, where = 0.0, (0, 0, 0)
    for count in rows[:1] if setting.quick else rows:
        for inputs, outputs in model_shapes:
            states = torch.randn(count, inputs, dtype=setting.dtype, device=setting.device)
            weight = torch.randn(outputs, inputs, dtype=setting.dtype, device=setting.device)
            for _ in range(3 if setting.quick else 12):
                synchronise(setting.device)
                began = time.perf_counter()
                nn.functional.linear(states, weight)
                synchronise(setting.device)
                rate = 2.0 * count * inputs * outputs / (time.perf_counter() - began)
                if rate > best:
                    best, where = rate, (count, inputs, outputs)
    return {"flops_per_second": best, "rows_inputs_outputs": where}


@dataclass(frozen=True)
class Limit:
    """One kind of step against the machine's limit: `ratio` is the median over turns of seconds to flops / rate.

    A turn needs at least `flops`; `groups` are the seconds of one profiled turn by kind of operator.
    """

    title: str
    seconds: list[float]
    flops: list[float]
    rate: float
    ratio: float
    target: float | None
    counts: dict[str, int]
    groups: dict[str, float]


def steps(quick: bool) -> dict[str, tuple[str, Passes, Any, float | None]]:
    """The kinds of steps: title, passes, how to make the side, target."""
    kinds: dict[str, tuple[str, Passes, Any, float | None]] = {
        "windows": ("LoRA, 8 targets a window", "adapters", partial(OurTraining, kind="windows"), TARGET),
        "single": ("LoRA, single target", "adapters", partial(OurTraining, kind="single"), TARGET),
        "full": ("full, 8 targets a window", "full", partial(OurTraining, kind="windows", full=True), TARGET),
        "score": ("scoring 1 + 19 candidates", "score", partial(Trees, candidates=20), None),
    }
    return {name: kinds[name] for name in ("windows", "score")} if quick else kinds


def run_limit(setting: Setting, say: Say) -> dict[str, Any]:
    """Measures every kind of step in this process, and the machine's rate before and after."""
    setting.apply()
    limits: dict[str, Any] = {}
    rates = []
    for name, (title, passes, make, target) in steps(setting.quick).items():
        side: Side = make(setting)
        model = side.model  # type: ignore[attr-defined]
        shapes = shapes_of(model.backbone)
        rates.append(matrix_rate(setting, shapes))
        side.turn(0)
        turns = [side.turn(repetition) for repetition in range(1, setting.repetitions + 1)]
        rates.append(matrix_rate(setting, shapes))
        rate = max(rates, key=lambda each: each["flops_per_second"])["flops_per_second"]
        sizes, flops = sizes_of(model.backbone), list[float]()
        total: dict[str, int] = {}
        for repetition in range(1, setting.repetitions + 1):
            counts = counts_of(batches_of(side, repetition))
            flops.append(needed_flops(sizes, passes, counts["tokens"], counts["places"], counts["pairs"]))
            total = {key: total.get(key, 0) + value for key, value in counts.items()}
        seconds = [turn.seconds for turn in turns]
        ratio = statistics.median(s * rate / f for s, f in zip(seconds, flops, strict=True))
        say(f"limit: {title}: {ratio:.2f} x the matrix work alone at {rate / 1e9:.0f} GFLOP/s")
        groups = group_times(setting, partial(side.turn, 1), vocabulary=model.backbone.model.config.vocab_size)
        limits[name] = asdict(Limit(title, seconds, flops, rate, ratio, target, total, groups))
    return {"steps": limits, "last_where_read": True, "rate": max(rates, key=lambda each: each["flops_per_second"])}


def shapes_of(backbone: CausalBackbone) -> list[tuple[int, int]]:
    """Inputs and outputs of the body's large linear layers, each shape once."""
    shapes = {
        (module.in_features, module.out_features)
        for name, module in backbone.body.named_modules()
        if isinstance(module, nn.Linear) and "lora_" not in name
    }
    return sorted(shapes)


def batches_of(side: Side, repetition: int) -> list[PromptTreeBatch]:
    """The batches of a turn of ours."""
    if isinstance(side, Trees):
        return side.batches
    return list(side.loader(repetition))  # type: ignore[attr-defined]


LOADING_TARGET = 0.05
"""Largest share of a step's time that may be spent waiting for data."""


class Clocked:
    """A loader of some batches that counts the seconds its user waits for the next one."""

    def __init__(self, loader: Iterable[Any], batches: int) -> None:
        self.loader, self.batches = loader, batches
        self.waited = 0.0

    def __iter__(self) -> Iterator[Any]:
        """Passes the batches on."""
        source = iter(self.loader)
        for _ in range(self.batches):
            began = time.perf_counter()
            batch = next(source)
            self.waited += time.perf_counter() - began
            yield batch


def run_loading(setting: Setting, say: Say) -> dict[str, Any]:
    """Trains some steps on the data module's own loader, then makes batches alone.

    Returns:
        `wait_fraction` with its target, and `instructions_per_second_per_core` and `tokens_per_second_per_core`:
        what one core samples, renders, encodes and lays out.
    """
    setting.apply()
    side = OurTraining(setting, kind="windows")
    data = side.work.data
    loader = data.train_dataloader()
    steps = OurSteps(setting)
    clocked = Clocked(loader, 2 if setting.quick else 6)
    trainer = quiet_trainer(setting, max_epochs=1, callbacks=[steps])
    trainer.fit(side.model, train_dataloaders=clocked)
    fraction = clocked.waited / steps.seconds

    source, instructions, tokens = iter(loader), 0, 0
    next(source)
    began = time.perf_counter()
    for _ in range(2 if setting.quick else 200):
        batch = next(source)
        instructions, tokens = instructions + len(batch.case), tokens + batch.tokens_unshared
    seconds = time.perf_counter() - began
    say(
        f"loading: {fraction:.2%} of a step waits for data; {instructions / seconds:.0f} instructions a second and core"
    )
    return {
        "wait_fraction": fraction,
        "target": LOADING_TARGET,
        "workers": data.loader.num_workers,
        "instructions_per_second_per_core": instructions / seconds,
        "tokens_per_second_per_core": tokens / seconds,
    }
