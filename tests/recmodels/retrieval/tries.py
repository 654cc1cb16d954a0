"""Prompts, titles and tiny models that the tests of retrieval share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from recmodels.backbones.causal import CausalBackbone
from recmodels.engine.tree_attention import ATTENTION

END = 2


PROMPTS = st.lists(st.lists(st.integers(3, 60), min_size=1, max_size=9), min_size=1, max_size=3)


# Few tokens: titles that begin others, equal titles and long shared beginnings come by themselves.
TITLES = st.lists(st.lists(st.integers(3, 6), min_size=1, max_size=6), min_size=1, max_size=16)


def left_padded(prompts: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
    width = max(map(len, prompts))
    token = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    return token, torch.tensor([len(prompt) for prompt in prompts])


def ended(titles: Sequence[list[int]]) -> list[list[int]]:
    return [[*title, END] for title in titles]


def tiny(family: str) -> CausalBackbone:
    """A random model of a family, with what makes the family special."""
    import transformers

    common = {"vocab_size": 64, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    grouped = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
    }
    special: dict[str, dict[str, Any]] = {
        "Llama": grouped,
        "Qwen2": {k: v for k, v in grouped.items() if k != "head_dim"},
        "Qwen3": grouped | {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
        "Gemma": grouped,
        "Gemma2": grouped | {"sliding_window": 4, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
        "Gemma3Text": grouped | {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
        "Mistral": grouped | {"sliding_window": 5},
        "GPT2": {"n_embd": 16, "n_layer": 2, "n_head": 4},
        "OPT": {
            "hidden_size": 16,
            "ffn_dim": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "word_embed_proj_dim": 16,
        },
    }
    config = getattr(transformers, f"{family}Config")(**(common | special[family]))
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION).eval()
    for value in model.parameters():  # most start near zero, where a mistake would not show
        torch.nn.init.normal_(value, std=0.3)
    return CausalBackbone(model=model, name=family)


FAMILIES = ("Llama", "Qwen2", "Qwen3", "Gemma", "Gemma2", "Gemma3Text", "Mistral", "GPT2", "OPT")


EXAMPLE_PROMPTS = [[3, 9, 4, 11, 5], [7, 8], [12, 3, 13]]


EXAMPLE_TITLES = [[3, 4, 5], [3, 4], [6], [3, 5, 5, 6], [6, 3], [6], [4, 4, 4, 4, 4]]
