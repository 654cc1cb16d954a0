"""Folders of adapters and prefixes that plain transformers reads with a few lines, which their cards hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datamodules.pretrained import PACKAGED, pretrained_folder

if TYPE_CHECKING:
    from torch import Tensor

    from recmodels.backbone import Backbone

SETTINGS, TENSORS = "instructrec_adapter.json", "instructrec_adapter.safetensors"

ADAPTER = """import json, torch
from safetensors.torch import load_file
from transformers import {auto}
model = {auto}.from_pretrained({base}, dtype=torch.float32).eval()
told, parts, seen = json.load(open(f"{{folder}}/{settings}")), load_file(f"{{folder}}/{tensors}"), {{}}
for name in sorted({{key.rsplit(".", 2)[0] for key in parts if key.endswith("down.weight")}}):
    def add(layer, args, output, name=name, linear=torch.nn.functional.linear):
        w, read = lambda part: parts[f"{{name}}.{{part}}"], seen.get(name, output)
        inner = getattr(torch.nn.functional, told["activation"])(linear(read, w("down.weight"), w("down.bias")))
        scaling = parts.get(f"{{name}}.scaling", told["scaling"])
        return output + scaling * linear(inner, w("up.weight"), w("up.bias"))
    model.get_submodule(name).register_forward_hook(add)
    if name in told["reads"]:
        first = model.get_submodule(told["reads"][name])
        first.register_forward_pre_hook(lambda layer, args, name=name: seen.update({{name: args[0]}}))
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


def write_own(folder: Path, settings: dict[str, Any], state: dict[str, Tensor], backbone: Backbone) -> str:
    """Writes settings and tensors.

    Args:
        folder: where to.
        settings: as `recmodels.own_parts` gives them.
        state: tensors by name.
        backbone: that was tuned.

    Returns:
        What the card says of loading them.
    """
    from safetensors.torch import save_file

    name = backbone.name
    base = str(pretrained_folder(name)) if name in PACKAGED or name.endswith(".gguf") else name
    (folder / SETTINGS).write_text(json.dumps(settings | {"base_model": name}, indent=1) + "\n", encoding="utf-8")
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
