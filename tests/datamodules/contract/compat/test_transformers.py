"""The private names of transformers are still there, and say what they are asked for."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import transformers
from transformers import AutoModelForCausalLM

from datamodules.contract.compat.transformers import attention_of, cache_argument, default_attention


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_transformers_has_not_moved_what_is_used_of_it(attention: str, tiny_causal: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_causal, attn_implementation=attention, trust_remote_code=False)
    moved = f"transformers {transformers.__version__} has moved this: mend datamodules/contract/compat/transformers.py"
    assert hasattr(model, "_supports_sdpa"), moved
    assert default_attention(model) == "sdpa", moved
    assert attention_of(model.config) == attention, moved
    assert cache_argument(model.base_model) in inspect.signature(model.base_model.forward).parameters, moved
