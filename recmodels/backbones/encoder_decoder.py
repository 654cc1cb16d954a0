"""Encoder-decoder backbones: every prompt is encoded once, and its answers are decoded as one tree.

The decoder obeys the rule of `recmodels.engine.prompt_tree`: a tree's root is the decoder's start token, branches share
their first tokens, and a token attends to its ancestors at position `depth`. Encoder-decoders take no positions, but
make them for 0, 1, 2, ... of a row; what they make there is read again at the depth of each token. So prompts are never
encoded twice, and no keys and values of a prompt are ever copied to its branches.

# E encoder rows, S tokens of an encoder row, R decoder rows, N tokens of a decoder row, H heads, D hidden, L labels,
# B branches
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from datamodules.contract.batch import EncoderDecoderBatch
from datamodules.contract.errors import InputError
from datamodules.sources.pretrained import is_encoder_decoder
from recmodels.backbones.base import Backbone, Precision, block_list, evaluating, prove_layout
from recmodels.backbones.causal import CausalBackbone, load_causal
from recmodels.backbones.loading import load_model
from recmodels.backbones.quantization import Quantization
from recmodels.engine.answer_attention import ATTENTION, answer_attention, embedded_at, segment_mask
from recmodels.engine.prompt_tree import Head, branch_scores, tree_mask

AttentionInterface.register(ATTENTION, answer_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)  # for plain calls, whose masks have two dimensions


class EncoderDecoderBackbone(Backbone):
    """An encoder-decoder language model that honours trees of answers."""

    decoded_tokens = 16384
    """Tokens decoded at once; more (a catalogue) are decoded in turn, so that memory is bounded in evaluation."""

    @property
    def head(self) -> Head:
        """Hidden states to logits: T5 and UMT5 scale the states of tied embeddings, BART's family adds a bias."""
        project, config = self.model.get_output_embeddings(), self.model.config
        scaled = getattr(config, "scale_decoder_outputs", self.family == "umt5" and config.tie_word_embeddings)
        scale = config.d_model**-0.5 if scaled else 1.0
        return Head(project, scale, getattr(self.model, "final_logits_bias", None))

    def stacks(self) -> list[list[nn.Module]]:
        """Returns the transformer blocks of the encoder and those of the decoder."""
        return [block_list(self, stack) for stack in (self.model.get_encoder(), self.model.get_decoder())]

    def encode(self, batch: EncoderDecoderBatch) -> Tensor:
        """Returns the encoder's last hidden states `[E, S, D]`."""
        encoder = self.model.get_encoder()
        with embedded_at(encoder, batch.prompt_position):
            output = encoder(
                input_ids=batch.prompt,
                attention_mask=segment_mask(batch.prompt_segment, batch.prompt_segment),
                return_dict=True,
            )
        return cast(Tensor, output.last_hidden_state)

    def decode(self, batch: EncoderDecoderBatch, encoded: Tensor, rows: slice) -> Tensor:
        """Returns the decoder's last hidden states `[R', N, D]` of some rows."""
        decoder, depth, read = self.model.get_decoder(), batch.depth[rows], batch.prompt_row[rows]
        start = self.model.config.decoder_start_token_id
        with embedded_at(decoder, depth):
            output = decoder(
                input_ids=torch.where(depth == 0, start, batch.token[rows]),
                attention_mask=tree_mask(batch.end[rows]),
                encoder_hidden_states=encoded.index_select(0, read),
                encoder_attention_mask=segment_mask(batch.segment[rows], batch.prompt_segment[read]),
                use_cache=False,
                return_dict=True,
                depth=depth,
            )
        return cast(Tensor, output.last_hidden_state)

    @torch.no_grad()
    def probe(self) -> Tensor:
        """Returns scores `[3]` of three branches under two packed prompts."""
        with evaluating(self.model):
            return self.log_likelihood(probe_batch())

    def log_likelihood(self, batch: EncoderDecoderBatch) -> Tensor:
        """Returns the summed log-probability `[B]` of each branch's tokens."""
        log_probability = self.label_log_probabilities(batch, batch.label_place, batch.label_token)
        return branch_scores(log_probability, batch.label_branch, len(batch.branch_case), mean=False)

    def label_log_probabilities(
        self, batch: EncoderDecoderBatch, place: Tensor, token: Tensor, smoothing: float = 0.0
    ) -> Tensor:
        """Returns log-probabilities `[L]` of tokens at places where the batch has labels: its own, or others."""
        row, width = place // batch.token.shape[1], batch.token.shape[1]
        made = torch.zeros(len(token), device=token.device)
        for begin, hidden in self._decoded(batch):
            label = ((begin <= row) & (row < begin + len(hidden))).nonzero().flatten()
            part = self.log_probabilities(hidden, place[label] - begin * width, token[label], smoothing)
            made = made.index_copy(0, label, part)
        return made

    def batch_states(self, batch: EncoderDecoderBatch, place: Tensor) -> Tensor:  # all are whole
        """Returns the decoder's last hidden states `[R * N, D]` of a batch."""
        return torch.cat([hidden.flatten(0, 1) for _, hidden in self._decoded(batch)])

    def _decoded(self, batch: EncoderDecoderBatch) -> Iterator[tuple[int, Tensor]]:
        """The first row of each run of decoder rows, and its states `[R', N, D]`."""
        encoded = self.encode(batch)
        some = max(1, self.decoded_tokens // batch.token.shape[1])
        for begin in range(0, len(batch.token), some):
            yield begin, self.decode(batch, encoded, slice(begin, begin + some))


def load_backbone(
    name: str, precision: Precision, dropout: float | None = None, quantization: Quantization | None = None
) -> CausalBackbone | EncoderDecoderBackbone:
    """Loads a causal or an encoder-decoder backbone, as its configuration says.

    The arguments are those of `load_model`.

    Raises:
        InputError: the weights are unreadable, or the architecture does not honour the layout of our batches.
    """
    if not is_encoder_decoder(name):
        return load_causal(name, precision, dropout, quantization)
    from transformers import AutoModelForSeq2SeqLM

    kind = "an encoder-decoder model"
    model = load_model(AutoModelForSeq2SeqLM, kind, name, precision, dropout, ATTENTION, quantization)
    if getattr(model.config, "decoder_start_token_id", None) is None:
        raise InputError(f"backbone {name!r} cannot be loaded as {kind}: its config.json has no decoder_start_token_id")
    backbone = EncoderDecoderBackbone(model=model, name=name)
    prove_answer_trees(backbone)
    return backbone


# Small ids, which every vocabulary has. The first prompt's two answers part after a token that they share.
PROMPTS, ANSWERS = ([3, 5, 7, 4], [9, 8, 6]), ([6, 8, 9], [6, 4, 2], [4, 7, 5])


def probe_batch() -> EncoderDecoderBatch:
    """Returns three branches under two packed prompts."""
    none = torch.empty(0)
    return EncoderDecoderBatch(
        case=none,
        branch_case=torch.tensor([0, 0, 1]),
        branch_item=none,
        relevance=none,
        answers="candidates",
        prompt=torch.tensor([[*PROMPTS[0], *PROMPTS[1]]]),
        prompt_segment=torch.tensor([[4, 4, 4, 4, 7, 7, 7]]),
        prompt_position=torch.tensor([[0, 1, 2, 3, 0, 1, 2]]),
        prompt_row=torch.tensor([0]),
        token=torch.tensor([[0, 6, 8, 4, 0, 4, 7]]),
        end=torch.tensor([[4, 4, 3, 4, 7, 7, 7]]),
        depth=torch.tensor([[0, 1, 2, 2, 0, 1, 2]]),
        segment=torch.tensor([[4, 4, 4, 4, 7, 7, 7]]),
        label_place=torch.tensor([0, 1, 2, 0, 1, 3, 4, 5, 6]),
        label_token=torch.tensor(ANSWERS).flatten(),
        label_branch=torch.arange(3).repeat_interleave(3),
        tokens=14,
        tokens_unshared=20,
        truncated=0,
    )


def prove_answer_trees(backbone: EncoderDecoderBackbone) -> None:
    """Compares branches under two packed prompts with the same pairs through the model's own forward.

    Raises:
        InputError: the scores differ, so the architecture does not take custom masks, or positions read again.
    """

    def plain_scores() -> Tensor:
        model, scores = backbone.model, []
        for prompt, answer in zip((PROMPTS[0], PROMPTS[0], PROMPTS[1]), torch.tensor(ANSWERS), strict=True):
            logits = model(input_ids=torch.tensor([prompt]), labels=answer[None], use_cache=False).logits[0].float()
            scores.append(logits.log_softmax(-1).gather(1, answer[:, None]).sum())
        return torch.stack(scores)

    prove_layout(backbone, "trees of answers", ATTENTION, plain_scores)
