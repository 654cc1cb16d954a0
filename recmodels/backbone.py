"""Pretrained backbones behind one interface: a body that makes hidden states, a head that makes logits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from datamodules.batch import PromptTreeBatch
from datamodules.pretrained import pretrained_folder
from datamodules.sources import InputError
from recmodels.prompt_tree import branch_scores, label_log_probabilities
from recmodels.tree_attention import ATTENTION, Forest, bucket

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


class CausalBackbone(Backbone):
    """A causal language model that honours prompt trees."""

    @property
    def head(self) -> Callable[[Tensor], Tensor]:
        """Hidden states to logits."""
        project = self.model.get_output_embeddings()
        cap = getattr(self.model.config.get_text_config(), "final_logit_softcapping", None)
        return (lambda states: cap * torch.tanh(project(states) / cap)) if cap else project

    def layers(self) -> list[nn.Module]:
        """The transformer blocks, first to last."""
        return block_list(self, self.body)

    def log_likelihood(self, batch: PromptTreeBatch) -> Tensor:
        """Summed log-probability `[B]` of each branch's tokens."""
        hidden = self.hidden_states(batch.token, batch.end, batch.depth, batch.trunk, batch.stretches)
        log_probability = label_log_probabilities(hidden, self.head, batch.label_place, batch.label_token)
        return branch_scores(log_probability, batch.label_branch, len(batch.branch_case), mean=False)

    def hidden_states(self, token: Tensor, end: Tensor, depth: Tensor, trunk: int, stretches: Sequence[int]) -> Tensor:
        """Last hidden states `[N, D]` of a forest of tokens.

        Args:
            token: `[N]` ids in depth-first preorder.
            end: `[N]` index after the last descendant of each token.
            depth: `[N]` distance from the root.
            trunk: tokens at the front that are ancestors of all others.
            stretches: bounds of runs of whole trees behind the trunk, from its end to N.
        """
        size = len(token)
        if token.is_cuda:  # few lengths, so that kernels are compiled for few; padding tokens are trees of their own
            place = torch.arange(size, bucket(size), device=token.device)
            token, depth = (nn.functional.pad(part, (0, len(place))) for part in (token, depth))
            end = torch.cat([end, place + 1])
        output = self.body(
            input_ids=token[None],
            attention_mask=end[None, None, None],  # transformers passes a mask of four dimensions on as it is
            position_ids=depth[None],
            use_cache=False,
            return_dict=True,
            forest=Forest(end, depth, trunk, stretches),
        )
        return cast(Tensor, output.last_hidden_state)[0, :size]


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


def load_causal(name: str, precision: Precision, dropout: float | None = None) -> CausalBackbone:
    """Loads a causal backbone with the prompt-tree attention, and proves on a small tree that it is exact.

    Args:
        name: packaged name, folder or hub id.
        precision: of the weights.
        dropout: probability for every dropout of the architecture; None leaves its own.

    Raises:
        InputError: the folder is no causal model, its weights are unreadable, or it does not honour trees.
    """
    from transformers import AutoModelForCausalLM

    model = load_model(AutoModelForCausalLM, "a causal model", name, precision, dropout, ATTENTION)
    backbone = CausalBackbone(model=model, name=name)
    prove_tree_attention(backbone)
    return backbone


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
        config = AutoConfig.from_pretrained(folder)
        if dropout is not None:
            set_dropout(config, dropout, name)
        model = auto_class.from_pretrained(
            folder, config=config, dtype=getattr(torch, precision), attn_implementation=attention
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"backbone {name!r} cannot be loaded as {kind}: {reason}") from error
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


@torch.no_grad()
def prove_tree_attention(backbone: CausalBackbone) -> None:
    """Compares branches of a small forest with the same sequences through the model's own forward and attention.

    Raises:
        InputError: the scores differ, so the architecture does not take custom masks or positions.
    """
    model = backbone.model
    vocabulary = model.config.get_text_config().vocab_size
    # A trunk of two; behind it a branch of one, and a stem of two with two branches of two.
    token = torch.tensor([3, 5, 1, 7, 4, 6, 8, 9, 2]) % vocabulary
    end = torch.tensor([9, 9, 3, 9, 9, 7, 7, 9, 9])
    depth = torch.tensor([0, 1, 2, 2, 3, 4, 5, 4, 5])
    prompt, answers = token[[0, 1, 3, 4]], (token[5:7], token[7:9])
    place, branch = torch.tensor([4, 5, 4, 7]), torch.tensor([0, 0, 1, 1])
    training = model.training
    model.eval()
    with short_windows(model):
        try:
            hidden = backbone.hidden_states(token, end, depth, 2, (2, 3, 9))
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(
                f"backbone {backbone.name!r} ({backbone.family}) does not honour prompt trees: {reason}"
            ) from error
        log_probability = label_log_probabilities(hidden, backbone.head, place, torch.cat(answers))
        got = branch_scores(log_probability, branch, 2, mean=False)
        model.set_attn_implementation("eager")
        expected = []
        for answer in answers:
            logits = model(input_ids=torch.cat([prompt, answer])[None], use_cache=False).logits[0].float()
            expected.append(logits[3:-1].log_softmax(-1).gather(1, answer[:, None]).sum())
        model.set_attn_implementation(ATTENTION)
    model.train(training)
    check_agreement(backbone, "prompt trees", got, torch.stack(expected))


@contextmanager
def short_windows(model: Any, width: int = 3) -> Iterator[None]:
    """While it lasts, sliding windows are so short that a small proof reaches beyond them."""
    places = [
        place for place in (model.config.get_text_config(), *model.modules()) if vars(place).get("sliding_window")
    ]
    own = [place.sliding_window for place in places]
    for place in places:
        place.sliding_window = width
    try:
        yield
    finally:
        for place, window in zip(places, own, strict=True):
            place.sliding_window = window


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
