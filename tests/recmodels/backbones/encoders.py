"""Tiny random encoders, and texts packed into rows for them."""

from __future__ import annotations

from typing import Any

import torch

SIZES: dict[str, Any] = {
    "vocab_size": 89,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 130,
    "initializer_range": 0.2,
}
PACKED = ("bert", "roberta", "modernbert")
PADDED = ("mpnet",)


def build(family: str) -> Any:
    import transformers as hf

    if family == "roberta":
        return hf.RobertaModel(hf.RobertaConfig(**SIZES, pad_token_id=1), add_pooling_layer=False)
    if family == "mpnet":
        return hf.MPNetModel(hf.MPNetConfig(**SIZES, pad_token_id=1), add_pooling_layer=False)
    if family == "modernbert":  # two of its four layers see eight tokens to either side
        special = {"pad_token_id": 0, "bos_token_id": 1, "cls_token_id": 1, "eos_token_id": 2, "sep_token_id": 2}
        config = hf.ModernBertConfig(**{**SIZES, "num_hidden_layers": 4}, **special, local_attention=16)
        return hf.ModernBertModel(config)
    return hf.BertModel(hf.BertConfig(**SIZES, pad_token_id=0), add_pooling_layer=False)


def rows_of(rows: list[list[list[int]]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, segments, positions and the mask of real tokens of rows of texts."""
    width = max(sum(map(len, texts)) for texts in rows) + 1  # at least one token of padding
    token, segment, position = (torch.zeros(len(rows), width, dtype=torch.long) for _ in range(3))
    segment[:] = torch.arange(1, width + 1)
    attention = torch.zeros(len(rows), width, dtype=torch.bool)
    for row, texts in enumerate(rows):
        begin = 0
        for text in texts:
            stretch = slice(begin, begin + len(text))
            token[row, stretch], position[row, stretch] = torch.tensor(text), torch.arange(len(text))
            segment[row, stretch], attention[row, stretch] = stretch.stop, True
            begin = stretch.stop
    return token, segment, position, attention
