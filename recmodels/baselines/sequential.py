"""Recommenders that learn vectors of items from windows of training events.

# U cases, B branches, W windows, H history, I items, D dimensions
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from datamodules.contract.batch import BatchFormat, InteractionBatch, SequenceBatch
from datamodules.contract.errors import InputError
from recmodels.base import Kind, Recommender


class ItemEmbeddingRecommender(Recommender):
    """A recommender that is trained by gradient descent on item codes alone.

    Args:
        **kwargs: of `Recommender`.
    """

    batch_format: ClassVar[BatchFormat] = "sequences"
    kind: ClassVar[Kind] = "reference"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.sizes: tuple[int, int] | None = None
        """Users and items that the layers are made for; known once data or a checkpoint is there."""
        self.sizes_of_data: tuple[int, int] | None = None

    @abstractmethod
    def build(self, users: int, items: int) -> None:
        """Makes the layers."""

    @abstractmethod
    def loss(self, batch: SequenceBatch) -> Tensor:
        """Returns the mean loss of a batch of windows."""

    def setup(self, stage: str) -> None:
        """Takes the sizes of the data, which the trainer has set up by now."""
        data = cast(Any, self.trainer).datamodule
        if data is not None:
            self.sizes_of_data = (len(data.sequences.user_ids), len(data.sequences.item_ids))

    def configure_model(self) -> None:
        """Makes the layers once, in the sizes of the data.

        Raises:
            InputError: there is neither data nor a checkpoint to take the sizes from.
        """
        if self.sizes is not None:
            return
        if self.sizes_of_data is None:
            raise InputError(f"{type(self).__name__} has not been fitted; run fit first, or give --ckpt_path")
        self.make(*self.sizes_of_data)

    def make(self, users: int, items: int) -> None:
        """Makes the layers for so many users and items."""
        self.sizes = (users, items)
        self.build(users, items)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps the sizes beside what was trained."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["instructrec"]["sizes"] = list(self.sizes or ())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes the sizes from the checkpoint."""
        sizes = (checkpoint.get("instructrec") or {}).get("sizes")
        if self.sizes is None and sizes:
            self.make(*sizes)
        super().on_load_checkpoint(checkpoint)

    def training_step(self, batch: SequenceBatch, batch_idx: int) -> Tensor:
        """Returns the loss of a batch."""
        return self.check_loss(self.loss(batch))


class SequenceRecommender(ItemEmbeddingRecommender):
    """A transformer over item codes; an item's score is the product of its vector and the last position's state.

    Args:
        dimensions: of the item vectors D.
        layers: transformer blocks.
        heads: attention heads; they divide the dimensions.
        inner: width of the blocks' feed-forward layers.
        dropout: probability of every dropout.
        max_length: latest items that are read; a shorter `protocol.history` goes first.
        **kwargs: of `Recommender`.

    Raises:
        InputError: a size is below one, or the heads do not divide the dimensions.
    """

    def __init__(
        self,
        dimensions: int = 64,
        layers: int = 2,
        heads: int = 2,
        inner: int = 256,
        dropout: float = 0.5,
        max_length: int = 50,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        sizes = {"dimensions": dimensions, "layers": layers, "heads": heads, "inner": inner, "max_length": max_length}
        for name, value in sizes.items():
            if value < 1:
                raise InputError(f"model.{name} is {value}, must be at least 1")
        if dimensions % heads:
            raise InputError(f"model.heads is {heads}, must divide model.dimensions, {dimensions}")
        if not 0 <= dropout < 1:
            raise InputError(f"model.dropout is {dropout}, must be a probability, 0 to below 1")
        self.dimensions, self.layers, self.heads = dimensions, layers, heads
        self.inner, self.dropout, self.max_length = inner, dropout, max_length

    @abstractmethod
    def states_after(self, history: Tensor) -> Tensor:
        """Returns states `[U, D]` that say what comes after histories `[U, H]`."""

    @abstractmethod
    def item_vectors(self) -> Tensor:
        """Returns vectors `[I, D]` that states are multiplied with."""

    def item_bias(self) -> Tensor | None:
        """Returns the bias `[I]` of the scores, or None."""
        return None

    def forward(self, batch: InteractionBatch) -> Tensor:
        """Returns scores `[B]`.

        Raises:
            InputError: the model has not been fitted.
        """
        self.configure_model()
        state, vectors = self.states_after(batch.history), self.item_vectors()
        return pair_scores(state, vectors, batch.branch_case, batch.branch_item, self.item_bias())


def pair_scores(state: Tensor, vectors: Tensor, case: Tensor, item: Tensor, bias: Tensor | None = None) -> Tensor:
    """Returns `[B]`: products of states `[U, D]` of cases and vectors `[I, D]` of items, with their bias `[I]`.

    Over a whole catalogue as one matrix product.

    Example:
        >>> state, vectors = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> pair_scores(state, vectors, torch.tensor([0, 0]), torch.tensor([1, 0])).tolist()
        [2.0, 1.0]
    """
    if len(item) > len(vectors):
        table = state @ vectors.T
        scores = table[case, item]
    else:
        scores = (state[case] * vectors[item]).sum(-1)
    return scores if bias is None else scores + bias[item]


class ItemTransformer(nn.Module):
    """Post-norm transformer blocks over item vectors and learned positions, counted from the end of a sequence.

    There are `tokens` item codes and special ones, and `longest` positions; if `causal`, each sees only earlier ones.
    """

    def __init__(
        self,
        tokens: int,
        longest: int,
        dimensions: int,
        layers: int,
        heads: int,
        inner: int,
        dropout: float,
        causal: bool,
    ) -> None:
        super().__init__()
        self.item = nn.Embedding(tokens, dimensions)
        self.position = nn.Embedding(longest, dimensions)
        self.norm = nn.LayerNorm(dimensions, eps=1e-12)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(_Block(dimensions, heads, inner, dropout) for _ in range(layers))
        self.longest, self.causal = longest, causal
        self.apply(_initialise)

    def forward(self, sequence: Tensor) -> Tensor:
        """Returns states `[U, H, D]` of sequences `[U, H]` of codes, -1 at padding, H at most `longest`."""
        real, length = sequence >= 0, sequence.shape[1]
        index = torch.arange(self.longest - length, self.longest, device=sequence.device)
        state = self.dropout(self.norm(self.item(sequence.clamp(min=0)) + self.position(index)))
        itself = torch.eye(length, dtype=torch.bool, device=sequence.device)  # padding sees itself, so no row is empty
        seen = real[:, None, :].expand(-1, length, -1)
        seen = (seen.tril() if self.causal else seen) | itself
        for block in self.blocks:
            state = block(state, seen[:, None])
        return cast(Tensor, state)


class _Block(nn.Module):
    """Self-attention and feed-forward, each added to its input and normalised."""

    def __init__(self, dimensions: int, heads: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.rate = heads, dropout
        self.query_key_value = nn.Linear(dimensions, 3 * dimensions)
        self.out = nn.Linear(dimensions, dimensions)
        self.up, self.down = nn.Linear(dimensions, inner), nn.Linear(inner, dimensions)
        self.norm_attention = nn.LayerNorm(dimensions, eps=1e-12)
        self.norm_feed = nn.LayerNorm(dimensions, eps=1e-12)
        self.dropout = nn.Dropout(dropout)

    def forward(self, state: Tensor, seen: Tensor) -> Tensor:
        query, key, value = self.query_key_value(state).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        rate = self.rate if self.training else 0.0
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=seen, dropout_p=rate)
        state = self.norm_attention(state + self.dropout(self.out(mixed.transpose(1, 2).flatten(2))))
        fed: Tensor = self.down(self.dropout(nn.functional.gelu(self.up(state))))
        return self.norm_feed(state + self.dropout(fed))  # type: ignore[no-any-return]


def _initialise(module: nn.Module) -> None:
    """Normal with deviation 0.02, as BERT and RecBole; biases zero."""
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
