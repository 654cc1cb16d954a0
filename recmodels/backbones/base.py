"""Pretrained backbones behind one interface: a body that makes hidden states, a head that makes logits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from datamodules.contract.errors import InputError
from datamodules.contract.items import ItemTokens
from recmodels.backbones.quantization import is_quantised
from recmodels.engine.prompt_tree import label_log_probabilities
from recmodels.layers.bottleneck import Adapted
from recmodels.layers.item_factors import item_factors
from recmodels.layers.item_table import ItemTable, mean_rows, widened

Precision = Literal["float32", "bfloat16"]

OUTPUTS = {
    "attention": ("o_proj", "out_proj", "out_lin", "c_proj", "dense", "o", "Wo"),
    "mlp": ("down_proj", "fc2", "c_proj", "dense_4h_to_h", "wo", "Wo", "lin2", "dense"),
}
"""Names of the linear layers that end a block, by architecture family."""
DIVERGENCE_ROWS = 256
"""States whose logits are compared at once."""
START_FACTORS = 64
"""Factors of the training events that items' vectors start from: about as many as rank well by themselves."""


@dataclass(frozen=True)
class Backbone(ABC):
    """A pretrained network of transformer blocks that tuning methods change, whatever its layout.

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

    @abstractmethod
    def stacks(self) -> list[list[nn.Module]]:
        """Returns the transformer blocks, first to last, of the one stack, or of the encoder and then of the decoder.

        Raises:
            InputError: the architecture keeps its blocks where none of the known families does.
        """

    @abstractmethod
    def probe(self) -> Tensor:
        """What it makes of a small fixed input, without gradient or dropout: enough to tell two models apart."""

    def layers(self) -> list[nn.Module]:
        """Returns the transformer blocks of all stacks, first to last."""
        return [layer for stack in self.stacks() for layer in stack]

    def attention_layers(self) -> list[nn.Module]:
        """Every attention, block by block: over a token's own stack, and in decoder blocks over the encoder, too.

        Raises:
            InputError: a block has none where the known families have it, so there is nothing to prefix.
        """
        attention = []
        for layer in self.layers():
            named = [module for module in layer.modules() if type(module).__name__.endswith("Attention")]
            # T5 wraps each attention in another module of such a name, BERT its own in one with the output layer.
            innermost = [module for module in named if not any(other in [*module.modules()][1:] for other in named)]
            if not innermost:
                raise InputError(f"backbone {self.name!r} ({self.family}) has no attention layer to prefix")
            attention += innermost
        return attention

    @property
    def family(self) -> str:
        """The architecture, as transformers calls it."""
        return str(self.model.config.model_type)

    @property
    def head(self) -> Callable[[Tensor], Tensor]:
        """Hidden states to logits.

        Raises:
            InputError: the backbone has no head.
        """
        raise InputError(f"backbone {self.name!r} ({self.family}) has no head that makes logits")

    @property
    def output_embeddings(self) -> Any:
        """The linear layer that makes logits; None in an encoder."""
        return self.model.get_output_embeddings()

    @property
    def item_table(self) -> ItemTable | None:
        """Vectors of items that are tokens; None where items are written in words."""
        table = self.model.get_input_embeddings()
        return table if isinstance(table, ItemTable) else None

    def item_vectors(self) -> Tensor:
        """Vectors `[I, D]` that states are multiplied with, of items that are tokens."""
        return cast(ItemTable, self.item_table).rows

    def item_parameters(self, prefix: str) -> dict[str, nn.Parameter]:
        """Returns the vectors of items that are tokens, by their names in a module that holds the model as `prefix`."""
        mine = {id(value) for value in self.item_table.tables} if self.item_table else set()
        return {f"{prefix}.{name}": value for name, value in self.model.named_parameters() if id(value) in mine}

    def add_items(self, items: ItemTokens, trains: bool = True) -> int:
        """Gives items vectors behind the vocabulary, for input and output: one table where the head is tied.

        Returns:
            The number of their parameters.

        Raises:
            InputError: the backbone has no head that could grow, another vocabulary, or less width than the vectors.
        """
        words, head = self.model.get_input_embeddings(), self.output_embeddings
        if head is None or not isinstance(head, nn.Linear):
            raise InputError(
                f"data.items Token: backbone {self.name!r} ({self.family}) has no head that items could join"
            )
        if len(words.weight) != items.first:
            raise InputError(
                f"data.items Token: backbone {self.name!r} has {len(words.weight)} word embeddings, and its configuration"
                f" says {items.first}; save the model again"
            )
        tied = head.weight is words.weight and type(words) is nn.Embedding
        starts = [self._item_start(table.weight, items) for table in ((words,) if tied else (words, head))]
        if not tied and type(words) is not nn.Embedding:  # one that scales what it reads
            probe = words(torch.zeros(1, dtype=torch.long, device=words.weight.device))[0].float()
            row = words.weight[0].float()
            starts[0] = starts[0] * (probe.norm() / row.norm().clamp(min=1e-12))
        table = ItemTable(words, items.first, starts[0], None if tied else starts[1], items.sampled)
        for value in table.tables:
            value.requires_grad_(trains)
        self.model.set_input_embeddings(table)
        return sum(value.numel() for value in table.tables)

    def _item_start(self, weight: Tensor, items: ItemTokens) -> Tensor:
        draw = torch.Generator().manual_seed(0)
        if items.start == "random":
            size = (len(items.titles), weight.shape[1])
            return torch.randn(size, generator=draw).to(weight.device) * weight.float().std()
        titles = mean_rows(weight.detach(), items.titles)
        if items.events is not None:
            told = item_factors(items.events, min(START_FACTORS, titles.shape[1]))
        elif items.vectors is not None:
            told = items.vectors
        else:
            return titles
        if told.shape[1] > titles.shape[1]:
            raise InputError(
                f"data.items.start: {items.start} holds vectors of {told.shape[1]} numbers, and backbone {self.name!r} is"
                f" {titles.shape[1]} wide: at most as many work"
            )
        told = told.to(titles)
        own = items.vectors is not None and told.shape == titles.shape  # of this very space, we must suppose
        return told if own else titles + widened(told, titles, draw)

    def log_probabilities(
        self, hidden: Tensor, place: Tensor, token: Tensor, smoothing: float = 0.0, paired: bool = False
    ) -> Tensor:
        """Log-probabilities `[L]` of labels at places of `[R, N, D]` states: of words among words, of items among items.

        Under `paired` a state is two, `[..., 2 D]`, and logits are those of the first less those of the second.
        """
        table, made = self.item_table, hidden.new_zeros(len(token), dtype=torch.float32)
        sampled = table is not None and table.sampled is not None and torch.is_grad_enabled()
        for chosen, head, first in self._by_kind(token):
            if sampled and first and not (paired or smoothing):
                states = hidden.reshape(-1, hidden.shape[-1]).index_select(0, place[chosen])
                part = cast(ItemTable, table).sampled_log_probabilities(states, token[chosen] - first)
                made = made.index_copy(0, chosen, part)
                continue
            logits = difference(head) if paired else head
            label = place[chosen], token[chosen] - first
            part = label_log_probabilities(hidden, logits, *label, smoothing=smoothing)
            if len(chosen) == len(token):
                return part
            made = made.index_copy(0, chosen, part)
        return made

    def divergence(self, first: Tensor, second: Tensor, token: Tensor) -> Tensor:
        """Returns `[L]`: how far the probabilities that two states `[L, D]` give before each label are apart.

        The mean of both Kullback-Leibler divergences, over words before words and over items before items.
        """
        made = first.new_zeros(len(token), dtype=torch.float32)
        for chosen, head, _ in self._by_kind(token):
            parts = [
                checkpoint(mean_divergence, head, first[rows], second[rows], use_reentrant=False)
                for rows in chosen.split(DIVERGENCE_ROWS)
            ]
            made = made.index_copy(0, chosen, torch.cat(parts))
        return made

    def _by_kind(self, token: Tensor) -> list[tuple[Tensor, Callable[[Tensor], Tensor], int]]:
        """Which labels are words and which are items, where they are tokens: with their head, and the first one's id."""
        table = self.item_table
        if table is None:
            return [(torch.arange(len(token), device=token.device), self.head, 0)]
        is_item = token >= table.first
        kinds = [
            (is_item.nonzero().flatten(), table.logits, table.first),
            ((~is_item).nonzero().flatten(), self.head, 0),
        ]
        return [kind for kind in kinds if len(kind[0])]

    def linear_layers(self) -> dict[str, Any]:
        """Returns the body's linear layers by name, the head not among them."""
        head = self.output_embeddings
        return {
            name: module
            for name, module in self.body.named_modules()
            if (isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D") and module is not head
        }

    @property
    def width(self) -> int:
        """Of the hidden states between blocks."""
        return int(self.model.config.get_text_config().hidden_size)

    def input_layer(self, layer: nn.Module) -> nn.Module:
        """Returns the first linear layer of a transformer layer's feed-forward.

        Raises:
            InputError: there is none.
        """
        for path, module in layer.named_modules():
            if "att" not in path.lower() and widths(module)[0] == self.width:
                return cast(nn.Module, module)
        raise InputError(f"no mlp input layer is known for backbone {self.name!r} ({self.family})")

    def output_layer(self, layer: nn.Module, block: Literal["attention", "mlp"]) -> tuple[nn.Module, str]:
        """The module that holds the linear layer ending a block of a transformer layer, and that layer's name in it.

        In a decoder layer that also reads an encoder, the attention block is the one over its own tokens. Layers of
        a like name that do not lead back to the hidden width (BERT's `intermediate.dense`) are passed over.

        Raises:
            InputError: the architecture names its layers otherwise.
        """
        for path, module in layer.named_modules():
            parent, _, name = path.rpartition(".")
            attends = "att" in parent.lower()
            if name in OUTPUTS[block] and attends == (block == "attention") and widths(module)[1] == self.width:
                return layer.get_submodule(parent), name
        raise InputError(f"no {block} output layer is known for backbone {self.name!r} ({self.family})")


def difference(head: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Returns a head of pairs of states: logits of the first less those of the second.

    Example:
        >>> difference(torch.neg)(torch.tensor([[1.0, 2.0, 5.0, 5.0]])).tolist()
        [[4.0, 3.0]]
    """

    def logits(pair: Tensor) -> Tensor:
        first, second = pair.chunk(2, dim=-1)
        return head(first) - head(second)

    return logits


def mean_divergence(head: Callable[[Tensor], Tensor], first: Tensor, second: Tensor) -> Tensor:
    """Returns `[L]`: the mean of the Kullback-Leibler divergences, either way, of what two states make of a head.

    Example:
        >>> states = torch.tensor([[0.0, 0.0], [0.0, 3.0]])
        >>> [round(value, 4) for value in mean_divergence(torch.nn.Identity(), states, states.flip(0)).tolist()]
        [0.6789, 0.6789]
    """
    one, two = (head(states).float().log_softmax(-1) for states in (first, second))
    return ((one.exp() - two.exp()) * (one - two)).sum(-1) / 2


def widths(module: nn.Module) -> tuple[int, int]:
    """Returns the width of what a linear layer reads and of what it makes; zeros for any other module.

    Example:
        >>> widths(nn.Linear(3, 4)), widths(nn.ReLU())
        ((3, 4), (0, 0))
    """
    if isinstance(module, Adapted):
        return widths(module.layer)
    if is_quantised(module):
        return int(cast(Any, module).in_features), int(cast(Any, module).out_features)
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2 or isinstance(module, nn.Embedding):
        return 0, 0
    rows, columns = weight.shape
    return (rows, columns) if type(module).__name__ == "Conv1D" else (columns, rows)


def block_list(backbone: Backbone, stack: nn.Module) -> list[nn.Module]:
    """Returns the transformer blocks of a stack, first to last.

    Raises:
        InputError: the architecture keeps its blocks where none of the known families does.
    """
    for path in ("layers", "h", "decoder.layers", "block", "encoder.layer", "transformer.layer"):
        try:
            return list(cast(nn.ModuleList, stack.get_submodule(path)))
        except AttributeError:
            continue
    raise InputError(f"backbone {backbone.name!r} ({backbone.family}) has no known list of layers")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """While it lasts, a model is in evaluation mode."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@torch.no_grad()
def prove_layout(backbone: Backbone, layout: str, attention: str, plain_scores: Callable[[], Tensor]) -> None:
    """Compares the probe of a backbone with the scores `[B]` that the model's own forward and attention give.

    Args:
        backbone: its `probe` goes through the layout.
        layout: what is proved, for the message.
        attention: name of our attention, which is put aside for the comparison.
        plain_scores: computes what is expected.

    Raises:
        InputError: the architecture cannot compute the probe, or the scores differ by more than rounding does, which
            is far less than a wrong mask or position.
    """
    model, refusal = backbone.model, f"backbone {backbone.name!r} ({backbone.family}) does not honour {layout}"
    with evaluating(model):
        try:
            got = backbone.probe()
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise InputError(f"{refusal}: {str(error).strip().splitlines()[0]}") from error
        model.set_attn_implementation("eager")
        expected = plain_scores()
        model.set_attn_implementation(attention)
    difference = float((got - expected).abs().max())
    tolerance = (1e-4 if model.dtype == torch.float32 else 2e-2) * max(1.0, float(expected.abs().max()))
    if not difference <= tolerance:
        raise InputError(f"{refusal}: branch scores differ by {difference:.3g}")
