"""Tuned encoder-decoders, batches for them, and the separate pairs that they are compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from datamodules.batching.encoder_decoder import EncoderDecoderCollator
from datamodules.contract.batch import EncoderDecoderBatch
from recmodels.methods.adapter import AdapterTuning
from recmodels.methods.base import InstructionRecommender
from recmodels.methods.full import FullTuning
from recmodels.methods.lora import LoRATuning
from recmodels.methods.prefix import PrefixTuning
from tests.recmodels.oracle import Case, GivenIds, collate

FAMILIES = ("t5", "bart")
KINDS: dict[str, Callable[[Path], InstructionRecommender]] = {
    "full": lambda folder: FullTuning(backbone=str(folder)),
    "lora": lambda folder: LoRATuning(backbone=str(folder), r=2),
    "adapter": lambda folder: AdapterTuning(backbone=str(folder), bottleneck=3),
    "parallel": lambda folder: AdapterTuning(backbone=str(folder), bottleneck=3, placement="parallel", scaling=4.0),
    "prefix": lambda folder: PrefixTuning(backbone=str(folder), length=3),
}


def tree_batch(cases: list[Case], row_tokens: int = 200, answer_tokens: int = 2048) -> EncoderDecoderBatch:
    """A batch of (prompt, answers) through the real collator, without any text."""

    collator = EncoderDecoderCollator(GivenIds(), row_tokens, pad=0)  # type: ignore[arg-type]
    batch: EncoderDecoderBatch = collate(collator, cases, answer_tokens)
    return batch


def attention_by_hand(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, position_bias: Any = None, **options: Any
) -> Any:
    """The oracle's attention where there are prefixes: one softmax over a prefix and the keys, in plain matrices."""
    ahead = [part.expand(len(key), -1, -1, -1) for part in module.prefix()]
    scaling = options["scaling"] if options.get("scaling") is not None else query.shape[-1] ** -0.5
    own = query @ key.transpose(2, 3) * scaling
    for added in (attention_mask, position_bias):
        own = own if added is None else own + added
    weight = torch.cat([query @ ahead[0].transpose(2, 3) * scaling, own], -1).softmax(-1)
    split = ahead[0].shape[2]
    return (weight[..., :split] @ ahead[1] + weight[..., split:] @ value).transpose(1, 2), None


AttentionInterface.register("by_hand", attention_by_hand)
AttentionMaskInterface.register("by_hand", eager_mask)


@contextmanager
def plain_attention(model: Any) -> Iterator[None]:
    """transformers' own eager attention, so that nothing of ours takes part in the oracle."""
    # Module by module: transformers 5.17 leaves a stack of T5, whose configuration is a copy, as it was.
    configs = {id(one): one for module in model.modules() if (one := getattr(module, "config", None)) is not None}
    ours = model.config._attn_implementation
    prefixed = any(".prefix." in name for name, _ in model.named_parameters())
    for one in configs.values():
        one._attn_implementation = "by_hand" if prefixed else "eager"
    try:
        yield
    finally:
        for one in configs.values():
            one._attn_implementation = ours


def separate_scores(backbone: Any, cases: list[Case], extra: int = 0) -> torch.Tensor:
    """The oracle: `model(input_ids, attention_mask, labels)` for every pair, padded on the right."""
    model = backbone.model
    scores = []
    with plain_attention(model):
        for prompt, answer in ((prompt, answer) for prompt, answers in cases for answer in answers):
            source = torch.tensor([prompt + [model.config.pad_token_id] * extra])
            real = torch.tensor([[1] * len(prompt) + [0] * extra])
            label = torch.tensor([answer + [-100] * extra])
            logits = model(input_ids=source, attention_mask=real, labels=label).logits[0, : len(answer)]
            scores.append(logits.float().log_softmax(-1).gather(1, torch.tensor(answer)[:, None]).sum())
    return torch.stack(scores)


def tuned(kind: str, folder: Path) -> InstructionRecommender:
    """A tuned model away from its start, so that what is tuned takes part."""
    torch.manual_seed(1)
    model = KINDS[kind](folder)
    model.configure_model()
    model.log = lambda *a, **k: None  # type: ignore[method-assign]
    if kind != "full":
        for value in model.trained().values():
            torch.nn.init.normal_(value, std=0.1)
    return model.eval()
