"""Pretrained backbones behind one interface: a body that makes hidden states, a head that makes logits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pickle import UnpicklingError  # what torch.load raises; nothing is unpickled with it
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from datamodules.pretrained import pretrained_folder, why_not_loaded
from datamodules.sources import InputError

Precision = Literal["float32", "bfloat16"]

OUTPUTS = {
    "attention": ("o_proj", "out_proj", "c_proj", "dense", "o"),
    "mlp": ("down_proj", "fc2", "c_proj", "dense_4h_to_h", "wo"),
}
"""Names of the linear layers that end a block, by architecture family."""


@dataclass(frozen=True)
class Backbone(ABC):
    """A language model that scores branches, whatever its layout.

    Attributes:
        model: the Hugging Face model; tuning methods change it in place.
        name: what it was loaded from.
    """

    model: Any
    name: str

    @property
    def body(self) -> nn.Module:
        """The model without its head, where the architecture separates them; else the whole model."""
        return cast(nn.Module, self.model.base_model)

    @property
    @abstractmethod
    def head(self) -> Callable[[Tensor], Tensor]:
        """Hidden states to logits."""

    @abstractmethod
    def layers(self) -> list[nn.Module]:
        """The transformer blocks, first to last.

        Raises:
            InputError: the architecture keeps its blocks where none of the known families does.
        """

    @abstractmethod
    def probe(self) -> Tensor:
        """Scores of a few fixed branches, without gradient or dropout: enough to tell two models apart."""

    @abstractmethod
    def log_likelihood(self, batch: Any) -> Tensor:
        """Summed log-probability `[B]` of each branch's tokens, for a batch of this backbone's layout."""

    @property
    def family(self) -> str:
        """The architecture, as transformers calls it."""
        return str(self.model.config.model_type)

    def linear_layers(self) -> dict[str, Any]:
        """The body's linear layers by name, the head not among them."""
        head = self.model.get_output_embeddings()
        return {
            name: module
            for name, module in self.body.named_modules()
            if (isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D") and module is not head
        }

    def output_layer(self, layer: nn.Module, block: Literal["attention", "mlp"]) -> tuple[nn.Module, str]:
        """The module that holds the linear layer ending a block of a transformer layer, and that layer's name in it.

        In a decoder layer that also reads an encoder, the attention block is the one over its own tokens.

        Raises:
            InputError: the architecture names its layers otherwise.
        """
        for path, module in layer.named_modules():
            parent, _, name = path.rpartition(".")
            attends = "att" in parent.lower()
            if name in OUTPUTS[block] and attends == (block == "attention") and not list(module.children()):
                return layer.get_submodule(parent), name
        raise InputError(f"no {block} output layer is known for backbone {self.name!r} ({self.family})")


def block_list(backbone: Backbone, stack: nn.Module) -> list[nn.Module]:
    """The transformer blocks of a stack, first to last.

    Raises:
        InputError: the architecture keeps its blocks where none of the known families does.
    """
    for path in ("layers", "h", "decoder.layers", "block"):
        try:
            return list(cast(nn.ModuleList, stack.get_submodule(path)))
        except AttributeError:
            continue
    raise InputError(f"backbone {backbone.name!r} ({backbone.family}) has no known list of layers")


def load_model(
    auto_class: Any, kind: str, name: str, precision: Precision, dropout: float | None, attention: str
) -> Any:
    """Loads a language model of transformers.

    Args:
        auto_class: transformers' class for the kind.
        kind: what it is, for messages.
        name: packaged name, folder or hub id.
        precision: of the weights.
        dropout: probability for every dropout of the architecture; None leaves its own.
        attention: name of a registered attention.

    Raises:
        InputError: the folder holds no model of the kind, or its weights are unreadable.
    """
    from transformers import AutoConfig

    folder = pretrained_folder(name)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        if dropout is not None:
            set_dropout(config, dropout, name)
        model = auto_class.from_pretrained(
            folder,
            config=config,
            dtype=getattr(torch, precision),
            attn_implementation=attention,
            trust_remote_code=False,
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
    # Generation settings of a checkpoint (sampling, temperature) are never inherited.
    model.generation_config = type(model.generation_config)()
    return model


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


def check_agreement(backbone: Backbone, layout: str, got: Tensor, expected: Tensor) -> None:
    """Compares the scores `[B]` of a layout with those of the model's own forward.

    Raises:
        InputError: they differ by more than rounding does, which is far less than a wrong mask or position.
    """
    difference = float((got - expected).abs().max())
    tolerance = (1e-4 if backbone.model.dtype == torch.float32 else 2e-2) * max(1.0, float(expected.abs().max()))
    if not difference <= tolerance:
        raise InputError(
            f"backbone {backbone.name!r} ({backbone.family}) does not honour {layout}: branch scores differ by"
            f" {difference:.3g}"
        )
