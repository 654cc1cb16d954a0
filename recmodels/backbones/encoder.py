"""Bidirectional encoders over packed rows: several texts side by side, none of which sees another.

# R rows, N tokens a row, T texts, W longest text, D hidden
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from inspect import signature
from pickle import UnpicklingError
from typing import Any, cast

import torch
from torch import Tensor, nn

from datamodules.contract.errors import InputError
from datamodules.sources.pretrained import pretrained_folder, why_not_loaded
from recmodels.backbones.base import Backbone, block_list, evaluating
from recmodels.backbones.loading import set_dropout
from recmodels.engine.answer_attention import segment_mask

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TextEncoder(Backbone):
    """An encoder that reads packed rows.

    Attributes:
        packed: whether the model itself honours packed rows; else every text gets a padded row of its own.
    """

    packed: bool = True

    @property
    def output_embeddings(self) -> None:
        """None: an encoder makes no logits."""

    def stacks(self) -> list[list[nn.Module]]:
        """Returns the transformer blocks of the one stack."""
        return [block_list(self, self.body)]

    @torch.no_grad()
    def probe(self) -> Tensor:
        """Returns hidden states `[5 * D]` of two packed texts."""
        segment, position = torch.tensor([[0, 0, 0, 1, 1]]), torch.tensor([[0, 1, 2, 0, 1]])
        token = torch.tensor([[3, 5, 7, 4, 6]]) % self.model.config.vocab_size
        with evaluating(self.model):
            return self.hidden_states(token, segment, position, torch.ones_like(segment).bool()).flatten()

    def hidden_states(self, token: Tensor, segment: Tensor, position: Tensor, attention: Tensor) -> Tensor:
        """Returns the last hidden states `[R, N, D]`; those of padding mean nothing.

        Args:
            token: `[R, N]` input ids.
            segment: `[R, N]` a number that tells the texts of a row apart.
            position: `[R, N]` position within the text.
            attention: `[R, N]` true at real tokens.
        """
        if not self.packed:
            return self._padded(token, position, attention)
        mask: Any = segment_mask(segment, segment)
        if "sliding_attention" in (getattr(self.model.config, "layer_types", None) or ()):
            index = torch.arange(token.shape[1], device=token.device)
            near = (index[:, None] - index).abs() <= self.model.config.sliding_window
            mask = {"full_attention": mask, "sliding_attention": mask & near}
        # RoBERTa and its kin number positions from one after the padding id.
        padding = getattr(getattr(self.model, "embeddings", None), "padding_idx", None)
        first = 0 if padding is None else padding + 1
        return self._states(token, mask, position_ids=position + first)

    def _padded(self, token: Tensor, position: Tensor, attention: Tensor) -> Tensor:
        """Each text in a padded row of its own, with the model's own mask and positions; laid back into the rows."""
        at = position[attention]
        text = (at == 0).cumsum(0) - 1  # texts are contiguous, so each begins where the position is 0
        shape = (int(text[-1]) + 1, int(at.max()) + 1)  # [T, W]
        ids, real = token.new_zeros(shape), torch.zeros(shape, dtype=torch.long, device=token.device)
        ids[text, at], real[text, at] = token[attention], 1
        states = self._states(ids, real)[text, at]
        return states.new_zeros(*token.shape, states.shape[-1]).masked_scatter(attention[..., None], states)

    def _states(self, token: Tensor, mask: Any, **options: Tensor) -> Tensor:
        return cast(Tensor, self.model(input_ids=token, attention_mask=mask, **options).last_hidden_state)


def load_encoder(name: str, dropout: float | None = None) -> TextEncoder:
    """Loads an encoder in float32; one that does not honour packed rows reads padded ones, and the log says so.

    The arguments are those of `load_model`.

    Raises:
        InputError: the folder holds no encoder, or its weights are unreadable.
    """
    from transformers import MODEL_MAPPING, AutoConfig, AutoModel

    folder = pretrained_folder(name)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        if dropout is not None:
            set_dropout(config, dropout, name)
        model_class = MODEL_MAPPING.get(type(config), AutoModel)
        # Tags have no use for a pooler.
        poolable = "add_pooling_layer" in signature(model_class.__init__).parameters
        options = {"add_pooling_layer": False} if poolable else {}
        model = AutoModel.from_pretrained(
            folder, config=config, dtype=torch.float32, trust_remote_code=False, **options
        )
    except (OSError, ValueError, TypeError, UnpicklingError) as error:
        raise InputError(f"backbone {name!r} cannot be loaded as an encoder: {why_not_loaded(error)}") from error
    encoder = TextEncoder(model, name)
    reason = why_not_packed(encoder)
    if reason:
        log.warning("backbone %r (%s) reads padded rows instead of packed ones: %s", name, config.model_type, reason)
    return replace(encoder, packed=not reason)


@torch.no_grad()
def why_not_packed(encoder: TextEncoder) -> str:
    """Compares three packed texts with the same texts in padded rows; the reason not to pack, empty where they agree.

    The longest text exceeds any local window, so that a mask that forgets the window shows.
    """
    model, config = encoder.model, encoder.model.config
    window = getattr(config, "sliding_window", None) or getattr(config, "local_attention", None) or 0
    lengths = (int(window) + 9, 5, 2)
    position = torch.cat([torch.arange(n) for n in (*lengths, 1)])[None]  # the last token is padding
    segment = torch.repeat_interleave(torch.tensor([*lengths, 1]))[None]
    attention = torch.arange(sum(lengths) + 1)[None] < sum(lengths)
    token = (torch.arange(sum(lengths) + 1)[None] * 7 + 5) % config.vocab_size
    try:
        with evaluating(model):
            expected = replace(encoder, packed=False).hidden_states(token, segment, position, attention)[attention]
            got = replace(encoder, packed=True).hidden_states(token, segment, position, attention)[attention]
        difference = float((got - expected).abs().max()) / max(1.0, float(expected.abs().max()))
        return "" if difference <= 1e-4 else f"hidden states differ by {difference:.3g}"
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        return str(error).strip().splitlines()[0] or type(error).__name__
