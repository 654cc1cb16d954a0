"""Values that a config leaves open."""

from __future__ import annotations

import torch
from jsonargparse import Namespace

import recmodels
from benchmarks.allowed_imports import class_named


def batch_format_of(model: Namespace | None) -> str:
    """The batch format that a configured model class reads; the commonest where no class is named yet."""
    if model is None or not model.get("class_path"):
        return "prompt_tree"
    path = str(model.class_path)
    named = class_named(path) if "." in path else getattr(recmodels, path, None)
    return str(getattr(named, "batch_format", "prompt_tree"))


def shots_of(model: Namespace | None) -> int:
    """Demonstrations that a configured model asks for in every prompt; none where its class knows none."""
    return int((model.get("init_args") or {}).get("shots") or 0) if model is not None else 0


def best_precision(accelerator: str) -> str:
    """bfloat16 mixed precision where the hardware has it, else float32."""
    if torch.cuda.is_available() and accelerator != "cpu":
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "32-true"
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16-mixed" if fast else "32-true"
