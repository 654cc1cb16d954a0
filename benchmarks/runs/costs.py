"""Costs that need work of their own, measured when a run is over: FLOPs, latency, forgetting, merging.

Nothing here changes the model, and none of it is counted as training or test.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.paths import TEXTS
from datamodules.base import InstructionDataModule
from datamodules.contract.compat.transformers import attention_of
from datamodules.contract.errors import InputError
from datamodules.sources.pretrained import load_tokenizer
from recmodels.backbones.base import Precision
from recmodels.backbones.causal import CausalBackbone, load_causal
from recmodels.base import Recommender
from recmodels.engine.prompt_tree import label_log_probabilities
from recmodels.methods.base import InstructionRecommender

# What a tuned model has kept of its language: perplexity on general text, before and after.
#
# The text (`texts/general.txt`) is in the public domain: Lincoln 1863, Austen 1813, Darwin 1859, Melville 1851 (his dashes
# as hyphens). Each passage has been compared word by word with copies that others have published. Models have met these lines
# in pretraining, so the number says nothing by itself; only its change says what tuning has cost.
#
# # N tokens of a passage

TEXT = TEXTS / "general.txt"
LONGEST = 256
"""Tokens of a passage that are read: every context has room for them, behind a prefix too."""


def passages() -> list[str]:
    """The passages of the text.

    Example:
        >>> len(passages()), passages()[3][:16]
        (4, 'Call me Ishmael.')
    """
    return TEXT.read_text(encoding="utf-8").strip().split("\n\n")


@torch.no_grad()
def perplexity(backbone: CausalBackbone, token_ids: Sequence[Sequence[int]]) -> float:
    """Exponential of the mean negative log-probability of a token, the first of each passage left out; may be infinite.

    The log-probabilities are those that rank items: each passage is a prompt tree without branches.
    """
    total, count = 0.0, 0
    for ids in token_ids:
        token = torch.tensor(ids[:LONGEST], device=backbone.model.device)
        size = len(token)
        depth, end = torch.arange(size, device=token.device), torch.full_like(token, size)
        hidden = backbone.hidden_states(token, end, depth, 1, (1, size))
        total -= float(label_log_probabilities(hidden, backbone.head, depth[:-1], token[1:]).double().sum())
        count += size - 1
    mean = total / count
    return math.exp(mean) if mean < 700 else math.inf


Context = Callable[[], AbstractContextManager[Any]]
WINDOWS = 2
"""Training windows whose FLOPs are counted: more would have as many for each token."""
USERS = 8
"""Users whose latency is measured, evenly from the longest history to the shortest."""
ROUNDED, ROUNDED_SECONDS = 64, 20.0
"""Users whose first place is compared with that in float32: as many as can be ranked in about so long, at most."""


def measure(model: Recommender, data: InstructionDataModule, context: Context) -> dict[str, float]:
    """Costs by the names of the record; what does not apply to a model is absent."""
    costs: dict[str, float] = {}
    if model.batch_format in ("interactions", "sequences"):  # no text, no tokens
        return costs
    waited, training = dict(data.waited), model.training
    with torch.random.fork_rng(), unlogged(model):
        if model.trains:
            batch = few_windows(data).to(model.device)
            flops = step_flops(model, batch, context)
            costs |= {"train_flops_per_token": flops / max(1, batch.tokens), "sample_flops": float(flops)}
        model.eval()
        batches = [batch.to(model.device) for batch in single_users(data)]
        costs["latency_seconds"] = latency(model, batches, context)
        costs |= _rounding(model, data, context, min(ROUNDED, 1 + int(ROUNDED_SECONDS / costs["latency_seconds"])))
        if isinstance(model, InstructionRecommender):
            costs |= _merged_latency(model, batches, context) | _forgetting(model, context)
        model.train(training)
    data.waited.clear()
    data.waited.update(waited)
    return costs


@contextlib.contextmanager
def unlogged(model: Recommender) -> Iterator[None]:
    """While it lasts, what a step logs goes nowhere: no loop of the trainer is under way."""
    model.log = lambda *_, **__: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        del model.log


def step_flops(model: Recommender, batch: Any, context: Context) -> int:
    """Floating-point operations of forward and backward on a batch, as torch counts them (matrix products, attention).

    A product of [m, k] and [k, n] counts as 2 m k n; elementwise work is not counted. Gradients are put back.
    """
    gradients = {name: value.grad for name, value in model.trained().items()}
    model.train()
    counter = FlopCounterMode(display=False)
    with torch.enable_grad(), counter:
        with context():
            loss: Any = model.training_step(batch, 0)
        loss.backward()
    for name, value in model.trained().items():
        value.grad = gradients[name]
    return int(counter.get_total_flops())


def few_windows(data: InstructionDataModule) -> Any:
    """The first windows of a training epoch, as one batch."""
    loader = data.train_dataloader()
    sampler: Any = loader.batch_sampler
    return loader.collate_fn([loader.dataset[key] for key in next(iter(sampler))[:WINDOWS]])


def single_users(data: InstructionDataModule, users: int = USERS) -> list[Any]:
    """Batches of one test user each, under the main rule of candidates, from the longest history to the shortest."""
    loader = data.evaluation_loader("test")
    keys: Any = loader.dataset
    rows = sorted({round(number * (len(keys) - 1) / max(1, users - 1)) for number in range(users)})
    return [loader.collate_fn([keys[row]]) for row in rows]


@torch.inference_mode()  # as the trainer's test: its metrics are inference tensors
def latency(model: Recommender, batches: Sequence[Any], context: Context) -> float:
    """Median seconds to rank one user's candidates, prompt included, after a warm-up."""
    seconds = []
    for batch in [batches[0], *batches]:
        began = time.perf_counter()
        with context():
            float(model.score_cases(batch).score.sum())  # a number on the host: the device has finished
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])


@contextlib.contextmanager
def in_float32(model: torch.nn.Module) -> Iterator[None]:
    """While it lasts, every weight is float32, with the value that it was rounded to."""
    rounded = [v for v in (*model.parameters(), *model.buffers()) if v.dtype in (torch.bfloat16, torch.float16)]
    kept = [value.data for value in rounded]
    try:
        for value in rounded:
            value.data = value.data.float()
        yield
    finally:
        for value, data in zip(rounded, kept, strict=True):
            value.data = data


@torch.inference_mode()
def _rounding(model: Recommender, data: InstructionDataModule, context: Context, users: int) -> dict[str, float]:
    """Share of some users at whose first place float32 puts another item; nothing where the model scores in float32."""
    with context():
        halved = torch.is_autocast_enabled(model.device.type)
    if getattr(model, "quantization", None) or not (halved or _halves(model)):
        return {}
    batches = [batch.to(model.device) for batch in single_users(data, users)]
    with context():
        first = [_first_place(model, batch) for batch in batches]
    with in_float32(model):
        exact = [_first_place(model, batch) for batch in batches]
    moved = sum(a != b for a, b in zip(first, exact, strict=True))
    return {"rounded_first_places": moved / len(batches), "rounded_users": float(len(batches))}


def _halves(model: torch.nn.Module) -> bool:
    return any(value.dtype in (torch.bfloat16, torch.float16) for value in model.parameters())


def _first_place(model: Recommender, batch: Any) -> int:
    scores = model.score_cases(batch)
    return int(scores.branch_item[scores.score.argmax()]) if len(scores.score) else -1


def merged_network(model: InstructionRecommender, context: Context) -> Any | None:
    """A merged copy of the network that attends as the engine does; None where there is nothing that could be merged.

    By how much merging moves the scores is measured, not refused: in bfloat16 the weights are rounded once more.
    """
    own: Any = model.network
    if not any(isinstance(layer, BaseTunerLayer) for layer in own.modules()):
        return None
    try:
        with context():  # some of PEFT's layers mix precisions, which only autocast permits
            merged = model.merged_model(tolerance=math.inf)
    except InputError:  # the method has no merged form
        return None
    merged.set_attn_implementation(attention_of(own.config))
    return merged


@contextlib.contextmanager
def with_network(model: InstructionRecommender, network: Any) -> Iterator[None]:
    """While it lasts, the model scores with another network of the same architecture."""
    own, backbone = model.network, model.backbone
    model.network, model.backbone = network.eval(), replace(backbone, model=network)
    try:
        yield
    finally:
        model.network, model.backbone = own, backbone


@torch.no_grad()
def _merged_latency(model: InstructionRecommender, batches: Sequence[Any], context: Context) -> dict[str, float]:
    merged = merged_network(model, context)
    if merged is None:
        return {}
    with context():
        apart = model.score(batches[0])
    with with_network(model, merged):
        seconds = latency(model, batches, context)
        with context():
            together = model.score(batches[0])
    return {"merged_latency_seconds": seconds, "merged_score_difference": float((apart - together).abs().max())}


@torch.no_grad()
def _forgetting(model: InstructionRecommender, context: Context) -> dict[str, float]:
    if not isinstance(model.backbone, CausalBackbone):
        return {}
    tokenizer = load_tokenizer(model.backbone_name)
    ids = [tokenizer(text)["input_ids"] for text in passages()]
    with context():
        values = {"perplexity_after": perplexity(model.backbone, ids)}
    if model.kind == "untuned":
        values["perplexity_before"] = values["perplexity_after"]
    else:
        dtype: Precision = "bfloat16" if model.backbone.model.dtype == torch.bfloat16 else "float32"
        fresh = load_causal(model.backbone_name, dtype)  # outside the context: its proof is exact in float32 only
        fresh.model.to(model.device).eval()
        with context():
            values["perplexity_before"] = perplexity(fresh, ids)
    return {name: value for name, value in values.items() if math.isfinite(value)}
