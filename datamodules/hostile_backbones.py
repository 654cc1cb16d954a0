"""Folders of weights come from strangers: nothing in them runs, and why one cannot be loaded is one line.

A leaf behind `pretrained`.
"""

from __future__ import annotations

import json
from pathlib import Path
from pickle import UnpicklingError  # what torch.load raises; nothing is unpickled with it
from typing import Any

from datamodules.sources import InputError


def refuse_code(name: str, folder: Path) -> None:
    """Refuses a folder that would make transformers run or load something other than its own code on these files."""
    for filename in ("config.json", "tokenizer_config.json"):
        settings = _read_settings(folder / filename)
        if settings.get("auto_map"):
            from transformers import CONFIG_MAPPING

            # An architecture that transformers knows is built by its own code, whatever the file offers beside it.
            if filename != "config.json" or settings.get("model_type") not in CONFIG_MAPPING:
                raise InputError(
                    f"backbone {name!r} needs code that comes with it (auto_map in {folder / filename}), which is never "
                    "run; it would take a reviewed plug-in of that code for a pinned commit, owner/name@<40 hex digits>"
                )
        for key in ("_attn_implementation", "attn_implementation"):
            if "/" in str(settings.get(key, "")):
                raise InputError(f"backbone {name!r}: {folder / filename} names code to download ({key}), never run")
    if (folder / "adapter_config.json").is_file():
        raise InputError(f"backbone {name!r} is an adapter for another model; give the model it belongs to")


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}  # whoever needs the file says what is wrong with it
    return settings if isinstance(settings, dict) else {}


def why_not_loaded(error: Exception) -> str:
    """Why transformers could not load a backbone, in one line.

    Example:
        >>> why_not_loaded(UnpicklingError("Weights only load failed. Re-running with weights_only=False ..."))
        'its weights are a pickle with more than numbers in it, which is never run; give safetensors'
    """
    if isinstance(error, UnpicklingError):
        return "its weights are a pickle with more than numbers in it, which is never run; give safetensors"
    return first_line(error)


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its kind."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
