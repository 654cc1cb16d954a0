"""Parameters of a cell's model, counted on torch's meta device: the real classes, and no weight is made or fetched."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass, replace
from functools import cache
from inspect import signature
from io import StringIO
from pathlib import Path
from typing import Any

from datamodules.contract.errors import InputError

PACKAGED: dict[str, dict[str, Any]] = {
    "smollm2-135m-instruct": {
        "model_type": "llama",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_attention_heads": 9,
        "num_hidden_layers": 30,
        "num_key_value_heads": 3,
        "tie_word_embeddings": True,
        "vocab_size": 49_152,
    },
    "all-minilm-l6-v2": {
        "model_type": "bert",
        "hidden_size": 384,
        "intermediate_size": 1536,
        "num_attention_heads": 12,
        "num_hidden_layers": 6,
        "vocab_size": 30_522,
    },
}
"""Configurations of the packaged backbones, which lie in packages that a forecast does not fetch."""
_LARGEST_HOLLOW = 2**30
"""Backbone parameters above which no copy of zeros is made for a method that looks at the weights."""


_NOT_COUNTED = ("objective", "optimizer", "stack_on", "init_from")
"""Options that change no number of parameters and take an object or a file."""


@dataclass(frozen=True)
class Counts:
    """What a model is made of.

    Attributes:
        total: parameters of the backbone.
        trained: parameters that train.
        matrices: parameters of the backbone's linear layers, the head not among them.
        widths: inputs and outputs of these layers together.
        vocabulary: width of the logits; 0 where there are none.
    """

    total: int
    trained: int
    matrices: int
    widths: int
    vocabulary: int


def count_parameters(name: str, given: Mapping[str, Any]) -> Counts:
    """Builds a model of `recmodels` without its weights, tunes it, and counts.

    Raises:
        InputError: its class or its backbone is not known on this machine, or the method does not fit the backbone.

    Example:
        >>> count_parameters("LoRATuning", {"r": 8}).trained
        2442240
    """
    with warnings.catch_warnings(), redirect_stderr(StringIO()):  # PEFT's remarks and bars are for a run's log
        warnings.simplefilter("ignore")
        return _counts(name, json.dumps({key: value for key, value in given.items() if key not in _NOT_COUNTED}))


@cache
def _counts(name: str, options: str) -> Counts:
    import torch

    from recmodels.backbones.base import widths

    given = json.loads(options)
    with torch.device("meta"):
        model, backbone = _built(name, given)
        total = sum(value.numel() for value in backbone.model.parameters())
        linear = list(backbone.linear_layers().values())
        counts = Counts(
            total=total,
            trained=0,
            matrices=sum(layer.weight.numel() for layer in linear),
            widths=sum(sum(widths(layer)) for layer in linear),
            vocabulary=0 if backbone.output_embeddings is None else int(backbone.output_embeddings.weight.shape[0]),
        )
        try:
            return replace(counts, trained=_tuned(model, backbone))
        except (InputError, NotImplementedError, RuntimeError):  # a method that looks at the weights
            pass
    # On zeros, then: of two, three and four layers, as long as each adds the same number.
    layers = getattr(backbone.model.config, "num_hidden_layers", 0)
    with suppress(InputError):
        few = [_tuned(*_hollow(name, given, number)) for number in (2, 3, 4) if number <= layers]
        if len(few) == 3 and few[2] - few[1] == few[1] - few[0]:
            return replace(counts, trained=few[0] + (layers - 2) * (few[1] - few[0]))
    if total > _LARGEST_HOLLOW:
        raise InputError("its parameters hang on the weights, and the backbone is too large to try")
    return replace(counts, trained=_tuned(*_hollow(name, given)))


def _built(name: str, given: Mapping[str, Any], layers: int | None = None) -> tuple[Any, Any]:
    """A model and its backbone, untuned."""
    model = _instance(name, given)
    return model, _backbone(model.backbone_name, encoder=hasattr(model, "tag_logits"), layers=layers)


def _hollow(name: str, given: Mapping[str, Any], layers: int | None = None) -> tuple[Any, Any]:
    """A model and its backbone of zeros."""
    import torch

    with torch.device("meta"):
        model, backbone = _built(name, given, layers)
    backbone.model.to_empty(device="cpu")
    for value in (*backbone.model.parameters(), *backbone.model.buffers()):
        value.data.zero_()
    return model, backbone


def _tuned(model: Any, backbone: Any) -> int:
    """Tunes a backbone and counts what trains."""
    from torch import nn

    tuning = model._tuning.module if hasattr(model, "_tuning") else model
    tuning.apply_to(backbone)
    model.network, model.frozen_blocks = backbone.model, tuning.frozen_blocks
    if tuning is not model:  # a tagger's head is new and always trains
        model.tagger = nn.Linear(backbone.model.config.hidden_size, 2)
    return sum(value.numel() for value in model.trained().values())


def _instance(name: str, given: Mapping[str, Any]) -> Any:
    import peft

    import recmodels
    from recmodels.methods.base import InstructionRecommender
    from recmodels.methods.token_classification import TokenClassification

    kind = getattr(recmodels, name, None) if name in recmodels.__all__ else None
    if kind is None or not issubclass(kind, InstructionRecommender | TokenClassification):
        raise InputError(f"nothing is known of {name}")
    options = dict(given)
    if isinstance(tuning := options.get("tuning"), dict):
        options["tuning"] = _instance(_last(tuning), tuning.get("init_args") or {})
    if isinstance(config := options.get("peft_config"), dict):
        method = getattr(peft, _last(config), None)
        if not (isinstance(method, type) and issubclass(method, peft.PeftConfig)):
            raise InputError(f"nothing is known of {_last(config)}")
        if method is peft.AdamssConfig:
            raise InputError("the weights decide how much AdamssConfig trains")
        options["peft_config"] = method(**(config.get("init_args") or {}))
    try:
        return kind(**options)
    except (TypeError, ValueError) as error:
        raise InputError(" ".join(str(error).split())[:200]) from error


def _last(part: Mapping[str, Any]) -> str:
    return str(part.get("class_path")).rpartition(".")[2]


def _backbone(name: str, *, encoder: bool, layers: int | None = None) -> Any:
    """A frozen backbone with new weights, on the device that torch is told to use."""
    from transformers import MODEL_MAPPING, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    from recmodels.backbones.causal import CausalBackbone
    from recmodels.backbones.encoder import TextEncoder
    from recmodels.backbones.encoder_decoder import EncoderDecoderBackbone
    from recmodels.engine.tree_attention import ATTENTION
    from recmodels.layers.fused import replace_norms

    config = _config(name)
    if layers is not None:
        config.num_hidden_layers = layers
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:layers]
    if encoder:
        kind: Any = MODEL_MAPPING[type(config)]
        pooler = {"add_pooling_layer": False} if "add_pooling_layer" in signature(kind.__init__).parameters else {}
        return TextEncoder(kind(config, **pooler).requires_grad_(False), name)
    if config.is_encoder_decoder:
        return EncoderDecoderBackbone(AutoModelForSeq2SeqLM.from_config(config).requires_grad_(False), name)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION).requires_grad_(False)
    replace_norms(model)
    return CausalBackbone(model, name)


def _config(name: str) -> Any:
    from transformers import AutoConfig

    from datamodules.sources.pretrained import refuse_code

    if name in PACKAGED:
        return AutoConfig.for_model(**PACKAGED[name])
    folder = Path(name).expanduser()
    if not (folder / "config.json").is_file():
        raise InputError("nothing is known of its backbone")
    refuse_code(name, folder)
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise InputError("nothing is known of its backbone") from error
