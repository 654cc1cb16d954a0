"""A frozen sentence encoder: items are alike when their titles mean alike.

# U cases, B branches, H history, I items, N tokens, D hidden
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from datamodules.contract.batch import EventBatch, InteractionBatch
from datamodules.contract.checkpoints import checksum_parameters
from datamodules.contract.errors import InputError
from datamodules.sources.pretrained import check_backbone_name, context_length, load_tokenizer, pooled, pooling_of
from recmodels.backbones.encoder import TextEncoder, load_encoder
from recmodels.baselines.closed_form import ClosedForm


class SentenceEncoder(ClosedForm):
    """Scores an item by the cosine of its title's embedding and the history's mean embedding; nothing is tuned.

    Reimers and Gurevych 2019, arXiv 1908.10084: the last hidden states over a title's tokens, pooled as the model's own
    files say (mean, first token or maximum; without such files the mean), at length one.

    Args:
        backbone: packaged name, folder with a Hugging Face encoder, or hub id.
        recency: weight of each item of the history as a share of the next later one's; 1 weighs all alike.
        titles_at_once: titles that go through the encoder together; it changes speed alone.
        cutoffs: the k of HR@k and NDCG@k.

    Raises:
        InputError: there is no such backbone, or a number is out of its range.
    """

    solved: ClassVar[tuple[str, ...]] = ("embedding",)
    embedding: Tensor  # [I, D] of length one

    def __init__(
        self,
        backbone: str = "all-minilm-l6-v2",
        recency: float = 1.0,
        titles_at_once: int = 64,
        cutoffs: Sequence[int] = (1, 3, 5, 10),
    ) -> None:
        super().__init__(cutoffs=cutoffs)
        check_backbone_name(backbone)
        if not 0 < recency <= 1:
            raise InputError(f"model.recency is {recency}, must be above 0 and at most 1")
        if titles_at_once < 1:
            raise InputError(f"model.titles_at_once is {titles_at_once}, must be at least 1")
        self.backbone_name, self.recency, self.titles_at_once = backbone, recency, titles_at_once
        self.network: nn.Module | None = None

    def configure_model(self) -> None:
        """Loads the encoder once and freezes it."""
        if self.network is None:
            self.encoder = load_encoder(self.backbone_name)
            self.network = self.encoder.model.requires_grad_(False)
            self.base_checksum = checksum_parameters(self.encoder.model.named_parameters())

    def solve(self, events: EventBatch) -> dict[str, Tensor]:
        """Embeds all titles."""
        self.encoder.model.eval()
        device = events.item.device
        return {"embedding": embed(self.encoder, self.backbone_name, events.titles, self.titles_at_once, device)}

    def score_branches(self, batch: InteractionBatch) -> Tensor:
        """Returns scores `[B]`: cosine of an item and the weighted mean of the history."""
        width = batch.history.shape[1]
        age = torch.arange(width - 1, -1, -1, device=batch.history.device)
        weight = (batch.history >= 0) * torch.tensor(self.recency, device=age.device) ** age  # [U, H]
        taste = (self.embedding[batch.history.clamp(min=0)] * weight[..., None]).sum(1)  # [U, D]
        similarity = nn.functional.normalize(taste, dim=1) @ self.embedding.T  # [U, I]
        return similarity[batch.branch_case, batch.branch_item]


@torch.no_grad()
def embed(encoder: TextEncoder, name: str, titles: Sequence[str], at_once: int, device: torch.device) -> Tensor:
    """Returns embeddings `[I, D]` of titles, of length one, in float32, by an encoder and the tokenizer of its name."""
    tokenizer, longest, pooling = load_tokenizer(name), context_length(name), pooling_of(name)
    order = sorted(range(len(titles)), key=lambda item: len(titles[item]))  # like lengths share a batch
    parts: list[Tensor] = []
    for begin in range(0, len(order), at_once):
        texts = [titles[item] for item in order[begin : begin + at_once]]
        encoded = tokenizer(
            texts,
            padding=True,
            truncation=True,
            max_length=longest,
            return_tensors="pt",
            split_special_tokens=True,  # a title is data: what looks like a control token is text
        ).to(device)
        states = encoder.model(
            input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"]
        ).last_hidden_state
        parts.append(nn.functional.normalize(pooled(states.float(), encoded["attention_mask"], pooling), dim=1))
    return torch.cat(parts)[torch.tensor(order, device=device).argsort()]
