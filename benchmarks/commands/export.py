"""`instructrec export`: a checkpoint as a folder that plain transformers or PEFT loads, with a card from the run's record."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.commands import LineParser
from datamodules.contract.compat.transformers import default_attention
from datamodules.contract.errors import InputError
from datamodules.sources.pretrained import PACKAGED, pretrained_folder
from recmodels.methods.adapter_stack import SETTINGS, TENSORS

if TYPE_CHECKING:
    from torch import Tensor

    from recmodels.backbones.base import Backbone


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
    """Writes settings and tensors; returns what the card says of loading them."""
    from safetensors.torch import save_file

    name = backbone.name
    base = str(pretrained_folder(name)) if name in PACKAGED or name.endswith(".gguf") else name
    content = settings | {"base_model": name, "base_checksum": base_checksum}
    (folder / SETTINGS).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    save_file(state, str(folder / TENSORS), metadata={"format": "pt"})
    lines = loading_lines(settings, base, backbone.model.config.is_encoder_decoder)
    return f"\n## How to load it\n\n```python\n{lines}```\n"


def loading_lines(settings: dict[str, Any], base: str, encoder_decoder: bool) -> str:
    """The lines of a card that load such a folder; they read `folder` and `inputs`, of `tokenizer(..., return_tensors="pt")`.

    Example:
        >>> print(loading_lines({"method": "prefix"}, "owner/model", False).splitlines()[3])
        model = AutoModelForCausalLM.from_pretrained('owner/model', dtype=torch.float32).eval()
    """
    auto = "AutoModelForSeq2SeqLM" if encoder_decoder else "AutoModelForCausalLM"
    lines = PREFIX if settings["method"] == "prefix" else ADAPTER
    return lines.format(base=repr(base), auto=auto, settings=SETTINGS, tensors=TENSORS)


def run_command(arguments: list[str]) -> int:
    """Runs `export`."""
    options = _parser().parse_args(arguments)
    if options.items is not None:
        print(export_items(options.checkpoint, options.items, plugins=options.allow_import))
        return 0
    print(export(options.checkpoint, options.out, merge=options.merge, plugins=options.allow_import))
    return 0


def export(checkpoint: Path, out: Path, *, merge: bool = False, plugins: list[str] | None = None) -> str:
    """Writes what a run has trained as an adapter folder of PEFT or our own, or as a whole model of transformers.

    Weights that were trained themselves make a whole model; updates beside them make an adapter, or with `merge` a whole
    model too. All in float32, as trained.

    Returns:
        What was written and how to load it, for people.

    Raises:
        InputError: no such checkpoint or run, a folder in use, or a method that the form cannot hold.
    """
    config = _config_of(checkpoint)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"--out {out} is not an empty folder; give a new one")
    from recmodels.methods.export import own_parts
    from recmodels.methods.start import stands_on_run

    model = load_run_model(checkpoint, config, plugins or [])
    whole = merge or (model.trains_backbone and not _has_updates(model))
    if not whole and stands_on_run(model):
        raise InputError(f"{checkpoint}: it was tuned on the weights of model.init_from; use --merge for a whole model")
    own = None if whole else own_parts(model.backbone)
    if whole:
        whole_model = _whole(model)
    elif own is None:
        peft_config, state = model.peft_parts()
    from datamodules.sources.pretrained import load_tokenizer

    card = model_card(_record_of(config), model.backbone_name, whole or own is not None)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        folder = Path(scratch) / "export"
        folder.mkdir()
        if whole:
            whole_model.save_pretrained(folder, safe_serialization=True)
        elif own is not None:
            card += write_own(folder, *own, model.backbone, model.base_checksum)
        else:
            from safetensors.torch import save_file

            peft_config.save_pretrained(str(folder))
            save_file(state, str(folder / "adapter_model.safetensors"), metadata={"format": "pt"})
        load_tokenizer(model.backbone_name).save_pretrained(folder)
        (folder / "README.md").write_text(card, encoding="utf-8")
        if out.exists():
            out.rmdir()
        os.rename(folder, out)
    if own is not None:
        return f"adapter: {out} (plain transformers, by the lines in its README.md)"
    call = (
        "transformers: AutoModelForCausalLM.from_pretrained" if whole else "peft: PeftModel.from_pretrained(base, ...)"
    )
    return f"{'model' if whole else 'adapter'}: {out} ({call})"


def export_items(checkpoint: Path, file: Path, *, plugins: list[str] | None = None) -> str:
    """Writes the vectors that a run has learnt of items, as a Parquet file of ids, titles and vectors.

    Returns:
        What was written and how to read it, for people.

    Raises:
        InputError: no such checkpoint or run, a file that exists or is no .parquet, or a model without vectors of items.
    """
    from datamodules.items.vectors import write_item_vectors

    config = _config_of(checkpoint)
    if file.suffix != ".parquet" or file.exists():
        raise InputError(
            f"--items {file} {'exists' if file.exists() else 'is no .parquet file'}; give a new FILE.parquet"
        )
    model, data = _load_run(checkpoint, config, plugins or [])
    source = getattr(model, "backbone", model)
    if not hasattr(source, "item_vectors") or (source is not model and source.item_table is None):
        raise InputError(
            f"{type(model).__name__} learns no vectors of items; language models do with --data.items Token"
        )
    data.prepare_data()
    data.setup("test")
    vectors, items = source.item_vectors(), data.sequences.item_ids
    if len(vectors) != len(items):
        raise InputError(f"{checkpoint} holds vectors of {len(vectors)} items, and its data are {len(items)} now")
    file.parent.mkdir(parents=True, exist_ok=True)
    write_item_vectors(file, items, data.sequences.titles, vectors)
    return f"items: {file} ({len(items)} vectors of {vectors.shape[1]} numbers; columns item, title, vector)"


def load_run_model(checkpoint: Path, config: Path, plugins: list[str]) -> Any:
    """The language model of a run, built from the run's own config, with a checkpoint's weights in it.

    Raises:
        InputError: the config or the checkpoint is not of a tuned language model, or does not fit.
    """
    from recmodels.methods.base import InstructionRecommender

    def check(model: Any) -> None:
        if not isinstance(model, InstructionRecommender) or not model.trains:
            raise InputError(f"{type(model).__name__} trains no language model, so there is nothing to export")

    model, _ = _load_run(checkpoint, config, plugins, check)
    if model.item_tokens is not None:
        raise InputError(
            f"{checkpoint}: its items are tokens, whose vectors an exported folder cannot hold; test it as it is, or"
            " write the vectors alone: --items FILE.parquet"
        )
    return model.float().eval()  # after the load: the backbone is recognised in the precision it was trained in


def _load_run(
    checkpoint: Path, config: Path, plugins: list[str], check: Callable[[Any], None] | None = None
) -> tuple[Any, Any]:
    """Model, with a checkpoint's weights in it, and data of a run."""
    from benchmarks.cli import app as cli
    from callbacks.training_guard import load_trained

    with tempfile.TemporaryDirectory() as scratch:
        allowed = [f"--allow-import={name}" for name in plugins]
        here = ["--trainer.accelerator=cpu", "--trainer.devices=1"]
        quiet = ["--trainer.logger=false", f"--out={scratch}"]
        built = cli.build(["test", *allowed, "-c", str(config), *here, *quiet])
        if check is not None:
            check(built.model)
        built.model.trainer = built.trainer
        try:
            load_trained(built.model, checkpoint)
        except InputError as error:
            raise InputError(f"{checkpoint}: {str(error).removeprefix(f'{checkpoint}: ')}") from error
    return built.model, built.datamodule


def model_card(record: dict[str, Any], backbone: str, whole: bool) -> str:
    """The README of an exported folder, from the run's record; what was not recorded is left out.

    Example:
        >>> print(model_card({}, "smollm2-135m-instruct", True).splitlines()[1])
        base_model: smollm2-135m-instruct
    """
    from huggingface_hub import ModelCardData

    method, data = (
        record.get("model", {}).get("class", "a tuned model"),
        record.get("data", {}).get("class", "its data"),
    )
    head = ModelCardData(
        base_model=backbone, library_name="transformers" if whole else "peft", tags=["recommendation", "instructrec"]
    )
    lines = ["---", head.to_yaml(), "---", "", f"# {record.get('name') or method}", ""]
    lines += [
        f"{backbone}, tuned by {method} on {data} with InstructRec. It ranks items by the likelihood of titles.",
        "",
    ]
    for title, key in (("Test metrics", "metrics"), ("Costs", "costs"), ("Versions", "versions")):
        if record.get(key):
            rows = [f"| {name} | {_number(value)} |" for name, value in sorted(record[key].items())]
            lines += [f"## {title}", "", f"| {title.lower()} | value |", "|---|---|", *rows, ""]
    known = {"protocol": record.get("protocol", {}).get("fingerprint"), "seed": record.get("seed")}
    known |= {"commit": record.get("commit")}
    lines += [f"- {name}: {value}" for name, value in known.items() if value is not None]
    return "\n".join(lines) + "\n"


def _number(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _has_updates(model: Any) -> bool:
    """Whether PEFT's layers stand beside the weights, rather than the weights alone being trained."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return any(isinstance(layer, BaseTunerLayer) for layer in model.network.modules())


def _whole(model: Any) -> Any:
    if _has_updates(model) or not model.trains_backbone:
        return model.merged_model()
    network = model.network
    network.set_attn_implementation(default_attention(network))
    return network


def _config_of(checkpoint: Path) -> Path:
    if not checkpoint.is_file():
        raise InputError(f"{checkpoint} does not exist; RUN/checkpoints/best.ckpt is such a file")
    config = checkpoint.absolute().parent.parent / "config.yaml"
    if checkpoint.suffix != ".ckpt" or not config.is_file():
        raise InputError(
            f"{checkpoint} is not a checkpoint in a run's folder: it needs {config.name} in {config.parent}"
        )
    return config


def _record_of(config: Path) -> dict[str, Any]:
    path = config.with_name("record.json")
    try:
        record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise InputError(f"{path} is damaged: {error}") from error
    return record if isinstance(record, dict) else {}


def _parser() -> argparse.ArgumentParser:
    parser = LineParser(prog="instructrec export")
    parser.add_argument("checkpoint", type=Path, help="RUN/checkpoints/best.ckpt, as fit wrote it")
    made = parser.add_mutually_exclusive_group(required=True)
    made.add_argument("--out", type=Path, help="a new folder")
    made.add_argument(
        "--items", type=Path, metavar="FILE", help="in place of it: a new .parquet file of items' vectors alone"
    )
    parser.add_argument("--merge", action="store_true", help="a whole model, updates merged into its weights")
    parser.add_argument(
        "--allow-import", action="append", default=[], metavar="PACKAGE", help="the run's config may name its classes"
    )
    return parser
