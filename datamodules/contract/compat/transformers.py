"""What this project uses of transformers beyond its public interface (5.x)."""

from __future__ import annotations

import inspect
from typing import Any


def default_attention(model: Any) -> str:
    """The attention that transformers would choose for a model: `_supports_sdpa`, which no public name tells."""
    return "sdpa" if model._supports_sdpa else "eager"


def attention_of(config: Any) -> str:
    """The attention that a model was told to use: `_attn_implementation`, which can only be set in public."""
    return str(config._attn_implementation)


def cache_argument(body: Any) -> str:
    """What an architecture's forward calls its cache; transformers 5.24 began to rename it."""
    return "cache" if "cache" in inspect.signature(body.forward).parameters else "past_key_values"
