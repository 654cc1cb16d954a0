"""Loading a language model of transformers, and what a run asks of it and of the process before it trains."""

from __future__ import annotations

import ctypes
import os
from pickle import UnpicklingError
from typing import Any

import torch

from datamodules.contract.errors import InputError
from datamodules.sources.pretrained import pretrained_folder, why_not_loaded
from recmodels.backbones.base import Backbone, Precision
from recmodels.backbones.quantization import Quantization, four_bits, keep_packing, release_file

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of malloc.h
NEVER, LARGEST = -1, 2**30


def keep_freed_memory() -> bool:
    """Has the process keep, on a CPU, the memory that one step frees for the next; returns whether it does.

    The GNU C library hands blocks of more than 32 MB, and a long free end of the heap, back to the kernel at once, and
    every step then pays for each of their pages again: for full tuning, whose gradients are as long as the weights, a
    tenth of a step (SmolLM2-135M, bfloat16, two cores). Not for weights in four bits: those that are unpacked, of every
    size, would leave gaps that nobody gives back.

    Nothing is changed where there is a GPU, whose memory torch keeps by itself, where the C library is another one, or
    where the environment says how to allocate (`MALLOC_...`, `GLIBC_TUNABLES`).

    Example:
        >>> from unittest.mock import patch
        >>> with patch.dict(os.environ, {"MALLOC_TRIM_THRESHOLD_": "0"}):
        ...     keep_freed_memory()
        False
    """
    set_outside = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if set_outside or torch.cuda.is_available() or os.name != "posix":
        return False
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is None:
        return False
    return bool(set_option(MMAP_THRESHOLD, LARGEST)) and bool(set_option(TRIM_THRESHOLD, NEVER))


def load_model(
    auto_class: Any,
    kind: str,
    name: str,
    precision: Precision,
    dropout: float | None,
    attention: str,
    quantization: Quantization | None = None,
) -> Any:
    """Loads a language model of transformers.

    Args:
        auto_class: transformers' class for the kind.
        kind: what it is, for messages.
        name: packaged name, folder or hub id.
        precision: of the weights.
        dropout: probability for every dropout of the architecture; None leaves its own.
        attention: name of a registered attention.
        quantization: how the linear layers are held; None leaves them in the precision.

    Raises:
        InputError: the folder holds no model of the kind, or its weights are unreadable, or cannot be quantised here.
    """
    from transformers import AutoConfig

    folder, dtype = pretrained_folder(name), getattr(torch, precision)
    options = {"quantization_config": four_bits(dtype)} if quantization else {}
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        if dropout is not None:
            set_dropout(config, dropout, name)
        model = auto_class.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            attn_implementation=attention,
            trust_remote_code=False,
            **options,
        )
    except (OSError, ValueError, UnpicklingError) as error:
        raise InputError(f"backbone {name!r} cannot be loaded as {kind}: {why_not_loaded(error)}") from error
    except KeyError as error:
        if error.args != (attention,):
            raise
        raise InputError(
            f"backbone {name!r} ({config.model_type}) cannot be loaded: it attends in a way of its own, not through"
            " transformers' attention interface"
        ) from error
    if quantization:
        model.base_model.is_loaded_in_4bit = True  # PEFT asks what it tunes, which is the body
        keep_packing(model)
        release_file(model)
    # Generation settings of a checkpoint (sampling, temperature) are never inherited.
    model.generation_config = type(model.generation_config)()
    return model


def draw_weights(backbone: Backbone) -> None:
    """Replaces pretrained weights by those that the architecture starts its pretraining from, the same ones in every run."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)  # not 0, by which many a small test model was drawn
        fresh = type(backbone.model)(backbone.model.config)
    backbone.model.load_state_dict(fresh.state_dict())


def set_dropout(config: Any, dropout: float, name: str) -> None:
    """Sets every dropout probability that the architecture's configuration has.

    Raises:
        InputError: a positive dropout is asked of an architecture without any.
    """
    keys = [key for key in vars(config) if key.endswith(("dropout", "pdrop", "dropout_prob", "dropout_rate"))]
    if dropout > 0 and not keys:
        raise InputError(f"backbone {name!r} ({config.model_type}) has no dropout to set; leave model.dropout out")
    for key in keys:
        setattr(config, key, dropout)


def checkpoint_blocks(backbone: Backbone) -> None:
    """Makes every block forget what it computed and compute it again for the gradient.

    Without re-entrance, so that frozen embeddings do not cut the gradient off, and trained keys and values inside a
    block (a prefix) are seen.

    Raises:
        InputError: the architecture knows no gradient checkpointing.
    """
    if not getattr(backbone.model, "supports_gradient_checkpointing", False):
        raise InputError(
            f"backbone {backbone.name!r} ({backbone.family}) knows no gradient checkpointing; leave"
            " model.gradient_checkpointing out and lower data.batch_size"
        )
    # Its newer name, which older releases that we allow do not have.
    enable = getattr(backbone.model, "activation_checkpointing_enable", backbone.model.gradient_checkpointing_enable)
    enable({"use_reentrant": False})
