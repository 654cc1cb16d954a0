"""Pretrained backbones behind one interface: a body that makes hidden states, a head that makes logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pickle import UnpicklingError  # what torch.load raises; nothing is unpickled with it
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from datamodules.pretrained import pretrained_folder, why_not_loaded
from datamodules.sources import InputError
from recmodels.prompt_tree import ATTENTION, branch_scores, label_log_probabilities, tree_mask

Precision = Literal["float32", "bfloat16"]

OUTPUTS = {
    "attention": ("o_proj", "out_proj", "c_proj", "dense"),
    "mlp": ("down_proj", "fc2", "c_proj", "dense_4h_to_h"),
}
"""Names of the linear layers that end a block, by architecture family."""


@dataclass(frozen=True)
class CausalBackbone:
    """A causal language model that honours prompt trees.

    Attributes:
        model: the Hugging Face model; tuning methods change it in place.
        name: what it was loaded from.
    """

    model: Any
    name: str

    @property
    def body(self) -> nn.Module:
        """The model without its head."""
        return cast(nn.Module, self.model.base_model)

    @property
    def head(self) -> Callable[[Tensor], Tensor]:
        """Hidden states to logits."""
        project = self.model.get_output_embeddings()
        cap = getattr(self.model.config.get_text_config(), "final_logit_softcapping", None)
        return (lambda states: cap * torch.tanh(project(states) / cap)) if cap else project

    def layers(self) -> list[nn.Module]:
        """The transformer blocks, first to last.

        Raises:
            InputError: the architecture keeps its blocks where none of the known families does.
        """
        for path in ("layers", "h", "decoder.layers", "block"):
            try:
                return list(cast(nn.ModuleList, self.body.get_submodule(path)))
            except AttributeError:
                continue
        raise InputError(f"backbone {self.name!r} ({self.model.config.model_type}) has no known list of layers")

    def output_layer(self, layer: nn.Module, block: Literal["attention", "mlp"]) -> tuple[nn.Module, str]:
        """The module that holds the linear layer ending a block of a transformer layer, and that layer's name in it.

        Raises:
            InputError: the architecture names its layers otherwise.
        """
        for path, module in layer.named_modules():
            parent, _, name = path.rpartition(".")
            if name in OUTPUTS[block] and ("att" in parent) == (block == "attention") and not list(module.children()):
                return layer.get_submodule(parent), name
        family = self.model.config.model_type
        raise InputError(f"no {block} output layer is known for backbone {self.name!r} ({family})")

    def hidden_states(self, token: Tensor, end: Tensor, depth: Tensor) -> Tensor:
        """Last hidden states `[R, N, D]` of forests of tokens `[R, N]`."""
        output = self.body(
            input_ids=token,
            attention_mask=tree_mask(end),
            position_ids=depth,
            use_cache=False,
            return_dict=True,
        )
        return cast(Tensor, output.last_hidden_state)


def load_causal(name: str, precision: Precision, dropout: float | None = None) -> CausalBackbone:
    """Loads a causal backbone with the prompt-tree attention, and proves on a small tree that it is exact.

    Args:
        name: packaged name, folder or hub id.
        precision: of the weights.
        dropout: probability for every dropout of the architecture; None leaves its own.

    Raises:
        InputError: the folder is no causal model, its weights are unreadable, or it does not honour trees.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = pretrained_folder(name)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        if dropout is not None:
            set_dropout(config, dropout, name)
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=getattr(torch, precision),
            attn_implementation=ATTENTION,
            trust_remote_code=False,
        )
    except (OSError, ValueError, UnpicklingError) as error:
        raise InputError(f"backbone {name!r} cannot be loaded as a causal model: {why_not_loaded(error)}") from error
    # Generation settings of a checkpoint (sampling, temperature) are never inherited.
    model.generation_config = type(model.generation_config)()
    backbone = CausalBackbone(model=model, name=name)
    prove_tree_attention(backbone)
    return backbone


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


@torch.no_grad()
def prove_tree_attention(backbone: CausalBackbone) -> None:
    """Compares two branches of a small tree with the same two sequences through the model's own forward.

    Raises:
        InputError: the scores differ, so the architecture does not take custom masks or positions.
    """
    training = backbone.model.training
    backbone.model.eval()
    vocabulary = backbone.model.config.get_text_config().vocab_size
    token = torch.tensor([[3, 5, 7, 4, 6, 8, 9, 2]]) % vocabulary  # a trunk of four, two branches of two
    end = torch.tensor([[8, 8, 8, 8, 6, 6, 8, 8]])
    depth = torch.tensor([[0, 1, 2, 3, 4, 5, 4, 5]])
    answers = (token[0, 4:6], token[0, 6:8])
    place, branch = torch.tensor([3, 4, 3, 6]), torch.tensor([0, 0, 1, 1])
    hidden = backbone.hidden_states(token, end, depth)
    log_probability = label_log_probabilities(hidden, backbone.head, place, torch.cat(answers))
    got = branch_scores(log_probability, branch, 2, mean=False)
    expected = []
    for answer in answers:
        sequence = torch.cat([token[0, :4], answer])[None]
        logits = backbone.model(input_ids=sequence, use_cache=False).logits[0].float()
        expected.append(logits[3:-1].log_softmax(-1).gather(1, answer[:, None]).sum())
    backbone.model.train(training)
    difference = float((got - torch.stack(expected)).abs().max())
    # Rounding moves a score by far less than a wrong mask or position does.
    tolerance = (1e-4 if backbone.model.dtype == torch.float32 else 2e-2) * max(
        1.0, float(torch.stack(expected).abs().max())
    )
    if not difference <= tolerance:
        family = backbone.model.config.model_type
        raise InputError(
            f"backbone {backbone.name!r} ({family}) does not honour prompt trees: branch scores differ by {difference:.3g}"
        )
