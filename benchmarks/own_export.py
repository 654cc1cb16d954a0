"""Folders of adapters and prefixes that plain transformers reads with a few lines, which their cards hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datamodules.pretrained import PACKAGED, pretrained_folder
from recmodels.own_parts import SETTINGS, TENSORS

if TYPE_CHECKING:
    from torch import Tensor

    from recmodels.backbone import Backbone

ADAPTER = """import json, torch
from safetensors.torch import load_file
from transformers import {auto}
model = {auto}.from_pretrained({base}, dtype=torch.float32).eval()
levels, seen = json.load(open(f"{{folder}}/{settings}"))["levels"], {{}}
parts = load_file(f"{{folder}}/{tensors}")
keys = [key.removesuffix(".down.weight") for key in parts if key.endswith(".down.weight")]
for key in sorted(keys, key=lambda key: int(key.split(".")[0])):  # the hooks of lower levels run first
    def add(layer, args, output, key=key, told=levels[int(key.split(".")[0])], linear=torch.nn.functional.linear):
        w, read = lambda part: parts[f"{{key}}.{{part}}"], seen.get(key, output)
        inner = getattr(torch.nn.functional, told["activation"])(linear(read, w("down.weight"), w("down.bias")))
        scaling = parts.get(f"{{key}}.scaling", told["scaling"])
        return output + scaling * linear(inner, w("up.weight"), w("up.bias"))
    number, name = key.split(".", 1)
    model.get_submodule(name).register_forward_hook(add)
    if name in levels[int(number)]["reads"]:
        first = model.get_submodule(levels[int(number)]["reads"][name])
        first.register_forward_pre_hook(lambda layer, args, key=key: seen.update({{key: args[0]}}))
logits = model(**inputs).logits
"""

PREFIX = """import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, DynamicCache
model = AutoModelForCausalLM.from_pretrained({base}, dtype=torch.float32).eval()
parts, cache = load_file(f"{{folder}}/{tensors}"), DynamicCache()
rows, length = inputs["input_ids"].shape
for number in range(len(parts) // 2):
    key, value = (parts[f"{{number}}.{{part}}"].expand(rows, -1, -1, -1) for part in ("key", "value"))
    cache.update(key, value, number)
seen = torch.ones(rows, parts["0.key"].shape[2] + length, dtype=torch.long)
logits = model(**{{**inputs, "attention_mask": seen}}, past_key_values=cache, position_ids=torch.arange(length)[None]).logits
"""


def write_own(
    folder: Path, settings: dict[str, Any], state: dict[str, Tensor], backbone: Backbone, base_checksum: str
) -> str:
    """Writes settings and tensors.

    Args:
        folder: where to.
        settings: as `recmodels.own_parts` gives them.
        state: tensors by name.
        backbone: that was tuned.
        base_checksum: of its untuned weights.

    Returns:
        What the card says of loading them.
    """
    from safetensors.torch import save_file

    name = backbone.name
    base = str(pretrained_folder(name)) if name in PACKAGED or name.endswith(".gguf") else name
    told = settings | {"base_model": name, "base_checksum": base_checksum}
    (folder / SETTINGS).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    save_file(state, str(folder / TENSORS), metadata={"format": "pt"})
    lines = loading_lines(settings, base, backbone.model.config.is_encoder_decoder)
    return f"\n## How to load it\n\n```python\n{lines}```\n"


def loading_lines(settings: dict[str, Any], base: str, encoder_decoder: bool) -> str:
    """The lines of a card that load such a folder; they read `folder` and `inputs`, of `tokenizer(..., return_tensors="pt")`.

    Args:
        settings: as `recmodels.own_parts` gives them.
        base: folder or hub id of the backbone that was tuned.
        encoder_decoder: whether it is one.

    Example:
        >>> print(loading_lines({"method": "prefix"}, "owner/model", False).splitlines()[3])
        model = AutoModelForCausalLM.from_pretrained('owner/model', dtype=torch.float32).eval()
    """
    auto = "AutoModelForSeq2SeqLM" if encoder_decoder else "AutoModelForCausalLM"
    lines = PREFIX if settings["method"] == "prefix" else ADAPTER
    return lines.format(base=repr(base), auto=auto, settings=SETTINGS, tensors=TENSORS)
