"""What the engine is compared with: every prompt and answer as a padded sequence of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from datamodules.batching.prompt_trees import PromptTreeCollator
from datamodules.contract.batch import PromptTreeBatch
from datamodules.tokens.chat import EncodedInstruction
from recmodels.backbones.causal import CausalBackbone
from recmodels.engine.prompt_tree import branch_scores, label_log_probabilities
from recmodels.methods.adapter import AdapterTuning
from recmodels.methods.base import InstructionRecommender
from recmodels.methods.lora import LoRATuning
from recmodels.methods.prefix import PrefixTuning

Case = tuple[list[int], list[list[int]]]
"""Ids of a prompt and of its answers."""


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

    def encode(self, slates: list[Any]) -> list[EncodedInstruction]:
        return [EncodedInstruction(prompt=slate[0], answers=slate[1]) for slate in slates]


class GivenSlate(tuple):  # type: ignore[type-arg]
    """A (prompt, answers) pair with what messages ask for."""

    case, user = 0, "u"


def collate(collator: Any, cases: list[Case], answer_tokens: int) -> Any:
    """A batch of cases through a real collator over `GivenIds`, without any text."""
    collator.answer_tokens = answer_tokens
    return collator([[GivenSlate(case)] for case in cases])


def tree_batch(cases: list[Case], row_tokens: int, answer_tokens: int) -> PromptTreeBatch:
    """A batch of prompt trees."""
    made: PromptTreeBatch = collate(PromptTreeCollator(GivenIds(), row_tokens), cases, answer_tokens)  # type: ignore[arg-type]
    return made


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


def tuned(kind: str, folder: Path) -> InstructionRecommender:
    made: InstructionRecommender = {
        "lora": lambda: LoRATuning(backbone=str(folder), r=2),
        "adapter": lambda: AdapterTuning(backbone=str(folder), bottleneck=3),
        "prefix": lambda: PrefixTuning(backbone=str(folder), length=3),
        "prefix_mlp": lambda: PrefixTuning(backbone=str(folder), length=3, reparameterisation=5),
    }[kind]()
    torch.manual_seed(1)
    made.configure_model()
    for value in made.trained().values():  # away from the identity, so that the tuned parts take part
        torch.nn.init.normal_(value, std=0.1)
    return made.eval()


def engine_scores(backbone: CausalBackbone, batch: PromptTreeBatch) -> torch.Tensor:
    forest = (batch.token, batch.end, batch.depth, batch.trunk, batch.stretches)
    hidden = backbone.hidden_states(*forest, read=batch.label_place.unique())
    logp = label_log_probabilities(hidden, backbone.head, batch.label_place, batch.label_token, chunk=7)
    return branch_scores(logp, batch.label_branch, len(batch.branch_case), mean=False)
