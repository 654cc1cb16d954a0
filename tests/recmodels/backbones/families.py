"""Tiny random models of the families of causal backbones, and the prompts that they are tried on."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.recmodels.oracle import Case

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 5},
    "qwen2": {},
    "qwen3": {"head_dim": 8, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    "gemma": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "sliding_window": 4, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    "gemma3_text": {"head_dim": 8, "sliding_window": 4},
    "gpt2": {"num_key_value_heads": 4},
    "opt": {"num_key_value_heads": 4, "word_embed_proj_dim": 16, "ffn_dim": 48},
    "phi": {},
}
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
}
CASES: list[Case] = [
    ([5, 6, 7, 8, 9, 10], [[8, 9, 10], [8, 11], [12]]),
    ([5, 6, 9, 4], [[8], [13, 14, 15, 16, 17]]),
    ([30, 31, 32, 33, 34, 35, 36, 37], [[3, 4], [5]]),
]


def family_folders(tokenizer: Path, new_folder: Callable[[str], Path]) -> Callable[..., Path]:
    """Returns a function that writes tiny random models of a family, each once.

    Args:
        tokenizer: the folder whose tokenizer they get.
        new_folder: makes a new folder for a name.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    folders: dict[str, Path] = {}

    def folder_of(family: str, **changes: Any) -> Path:
        key = family + str(changes)
        if key not in folders:
            folder = new_folder(family)
            for file in tokenizer.glob("*token*"):
                shutil.copy(file, folder)
            torch.manual_seed(0)
            config = AutoConfig.for_model(family, vocab_size=520, **(SIZES | FAMILIES.get(family, {}) | changes))
            AutoModelForCausalLM.from_config(config).save_pretrained(folder)
            folders[key] = folder
        return folders[key]

    return folder_of
