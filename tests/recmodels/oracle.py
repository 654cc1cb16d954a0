"""What models are compared with: every prompt and answer as a sequence of its own; cases, and how they are tuned."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st

from datamodules.batching.loaders import LoaderOptions
from datamodules.batching.prompt_trees import PromptTreeCollator
from datamodules.contract.batch import PromptTreeBatch
from datamodules.datasets.movielens import MovieLens100K
from datamodules.protocol.rules import Protocol
from datamodules.tokens.chat import EncodedInstruction
from recmodels.backbones.causal import CausalBackbone
from recmodels.engine.prompt_tree import branch_scores, label_log_probabilities
from recmodels.methods.adapter import AdapterTuning
from recmodels.methods.base import InstructionRecommender
from recmodels.methods.lora import LoRATuning
from recmodels.methods.prefix import PrefixTuning

Case = tuple[list[int], list[list[int]]]
"""Ids of a prompt and of its answers."""
KINDS = ("plain", "lora", "adapter", "prefix", "prefix_mlp")
"""The untuned backbone, and what `tuned` makes."""
# With the two tokens that trainable_tokens trains.
CASES: list[Case] = [
    ([1, 5, 9, 17, 3, 22], [[7, 8], [7, 11, 4], [30]]),
    ([1, 5, 9, 40, 41], [[12, 6, 2], [2, 7, 8]]),
]
IDS = st.integers(3, 60)
CASE_LISTS = st.lists(
    st.tuples(
        st.lists(IDS, min_size=1, max_size=8),
        st.lists(st.lists(IDS, min_size=1, max_size=4), min_size=1, max_size=5),
    ),
    min_size=1,
    max_size=4,
)


class GivenIds:
    """Stands where collators expect a `SlateEncoder`; a slate is a prompt and its answers, as ids."""

    context = 512

    class text:
        class template:
            answers, form = (), "matching"

        @classmethod
        def of(cls, _: Any) -> Any:
            return cls

        @staticmethod
        def branches(slate: Any) -> tuple[list[int], list[float]]:
            count = len(slate[1])
            return list(range(count)), [1.0] + [0.0] * (count - 1)

    def sequences(self, _: Any) -> None:
        """No group is an open list."""

    def encode(self, slates: list[Any]) -> list[EncodedInstruction]:
        return [EncodedInstruction(prompt=slate[0], answers=slate[1]) for slate in slates]


class GivenSlate(tuple):  # type: ignore[type-arg]
    """A (prompt, answers) pair with what messages ask for."""

    case, user, rule = 0, "u", ""


def collate(collator: Any, cases: list[Case], answer_tokens: int) -> Any:
    """A batch of cases through a real collator over `GivenIds`, without any text."""
    collator.answer_tokens = answer_tokens
    return collator([[GivenSlate(case)] for case in cases])


def tree_batch(cases: list[Case], row_tokens: int, answer_tokens: int) -> PromptTreeBatch:
    """A batch of prompt trees."""
    collator = PromptTreeCollator(GivenIds(), row_tokens)  # type: ignore[arg-type]
    batch: PromptTreeBatch = collate(collator, cases, answer_tokens)
    return batch


def separate_scores(backbone: CausalBackbone, cases: list[Case], padding: str) -> torch.Tensor:
    """The oracle: every prompt and answer as a padded sequence of its own, all logits, plain causal attention."""
    pairs = [(prompt, answer) for prompt, answers in cases for answer in answers]
    width = max(len(p) + len(a) for p, a in pairs)
    scores = []
    for prompt, answer in pairs:
        sequence = prompt + answer
        fill = [0] * (width - len(sequence))
        left = padding == "left"
        ids = torch.tensor([fill + sequence if left else sequence + fill])
        real = torch.tensor([[0] * len(fill) + [1] * len(sequence) if left else [1] * len(sequence) + [0] * len(fill)])
        causal = torch.ones(width, width, dtype=torch.bool).tril()
        # A padding query attends to itself, or its softmax would be empty.
        mask = ((causal & real[0].bool()) | torch.eye(width, dtype=torch.bool))[None, None]
        position = (real.cumsum(1) - 1).clamp(min=0)
        hidden = backbone.body(
            input_ids=ids, attention_mask=mask, position_ids=position, use_cache=False
        ).last_hidden_state
        begin = width - len(sequence) if left else 0
        states = hidden[0, begin + len(prompt) - 1 : begin + len(sequence) - 1]
        logp = backbone.head(states).float().log_softmax(-1)
        scores.append(logp.gather(1, torch.tensor(answer)[:, None]).sum())
    return torch.stack(scores)


def plain_scores(model: Any, cases: list[Case], **inputs: Any) -> torch.Tensor:
    """The oracle: a plain causal model's own forward, one whole sequence at a time."""
    model.eval()
    scores = []
    for prompt, answers in cases:
        for answer in answers:
            logits = model(input_ids=torch.tensor([prompt + answer]), use_cache=False, **inputs).logits[0]
            logp = logits[-len(answer) - 1 : -1].float().log_softmax(-1)  # virtual tokens may stand before the prompt
            scores.append(logp.gather(1, torch.tensor(answer)[:, None]).sum())
    return torch.stack(scores)


def tuned(kind: str, folder: Path) -> InstructionRecommender:
    model: InstructionRecommender = {
        "lora": lambda: LoRATuning(backbone=str(folder), r=2),
        "adapter": lambda: AdapterTuning(backbone=str(folder), bottleneck=3),
        "prefix": lambda: PrefixTuning(backbone=str(folder), length=3),
        "prefix_mlp": lambda: PrefixTuning(backbone=str(folder), length=3, reparameterisation=5),
    }[kind]()
    torch.manual_seed(1)
    model.configure_model()
    for value in model.trained().values():  # away from the identity, so that the tuned parts take part
        torch.nn.init.normal_(value, std=0.1)
    return model.eval()


def away(model: Any) -> Any:
    """A model moved away from the identity, so that every tuned part takes part."""
    torch.manual_seed(5)
    for value in model.trained().values():
        value.data += 0.1 * torch.randn_like(value)
    return model


def two_steps(model: Any, batch: Any) -> Any:
    """A model after two steps: what is zero at the start (LoRA's B) holds the others back for one."""
    model.train()
    optimizer = torch.optim.AdamW(model.trained().values(), lr=0.02)
    for _ in range(2):
        optimizer.zero_grad()
        model.training_step(batch, 0).backward()
        optimizer.step()
    return model.eval()


def save(model: Any, path: Path) -> Path:
    """Writes the checkpoint that a trainer would write of a model."""
    checkpoint: dict[str, Any] = {"state_dict": model.state_dict()}
    model.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, path)
    return path


@torch.no_grad()
def scores_by_item(model: Any, batches: Iterable[Any]) -> dict[tuple[int, int], float]:
    """Scores by case and item."""
    scores: dict[tuple[int, int], float] = {}
    for batch in batches:
        values = model.score(batch)
        for case, item, value in zip(batch.case[batch.branch_case], batch.branch_item, values, strict=True):
            scores[int(case), int(item)] = float(value)
    return scores


def check_batching(model: Any, backbone: Path) -> None:
    """Holds a model to the same scores however cases are batched."""
    results = []
    for batch_size, row_tokens in ((1, 64), (8, 1), (32, 2048)):
        loader = LoaderOptions(batch_size, row_tokens)
        data = MovieLens100K(backbone=str(backbone), protocol=Protocol(negatives=6), loader=loader)
        results.append(scores_by_item(model, data.test_dataloader()))
    check_same_scores(results)


def check_same_scores(results: list[dict[tuple[int, int], float]]) -> None:
    for other in results[1:]:
        assert results[0].keys() == other.keys()
        assert max(abs(results[0][key] - other[key]) for key in other) < 1e-4


def engine_scores(backbone: CausalBackbone, batch: PromptTreeBatch) -> torch.Tensor:
    forest = (batch.token, batch.end, batch.depth, batch.trunk, batch.stretches)
    hidden = backbone.hidden_states(*forest, read=batch.label_place.unique())
    logp = label_log_probabilities(hidden, backbone.head, batch.label_place, batch.label_token, chunk=7)
    return branch_scores(logp, batch.label_branch, len(batch.branch_case), mean=False)
