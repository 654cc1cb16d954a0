"""Causal language models that honour prompt trees.

# N tokens, B branches, D hidden
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from datamodules.contract.batch import PromptTreeBatch
from recmodels.backbones.base import Backbone, Precision, block_list, evaluating, prove_layout
from recmodels.backbones.loading import load_model
from recmodels.backbones.quantization import Quantization
from recmodels.engine.prompt_tree import Head, branch_scores
from recmodels.engine.tree_attention import ATTENTION, AttentionForest, bucket, few_rows
from recmodels.layers.fused import replace_norms

TEXT_TOKENS = 256
"""Tokens of short texts that attention handles at once."""


class CausalBackbone(Backbone):
    """A causal language model that honours prompt trees."""

    @property
    def head(self) -> Head:
        """Hidden states to logits."""
        cap = getattr(self.model.config.get_text_config(), "final_logit_softcapping", None)
        return Head(self.model.get_output_embeddings(), cap=cap or None)

    def stacks(self) -> list[list[nn.Module]]:
        """Returns the transformer blocks of the one stack."""
        return [block_list(self, self.body)]

    @property
    def first_position(self) -> int:
        """Position of a prompt's first token: behind a prefix that counts as tokens, as PEFT's does."""
        return int(getattr(self.body, "first_position", 0))

    def virtual_tokens(self) -> Tensor | None:
        """Returns trained embeddings `[P, D]` that every prompt begins with; None where there are none."""
        embeddings = getattr(self.body, "virtual_tokens", None)
        return None if embeddings is None else embeddings().to(self.model.get_input_embeddings().weight.dtype)

    @torch.no_grad()
    def probe(self) -> Tensor:
        """Returns scores `[2]` of two branches of a small forest."""
        token = PROBE % self.model.config.get_text_config().vocab_size
        end = torch.tensor([9, 9, 3, 9, 9, 7, 7, 9, 9])
        depth = torch.tensor([0, 1, 2, 2, 3, 4, 5, 4, 5])
        position, branch = torch.tensor([4, 5, 4, 7]), torch.tensor([0, 0, 1, 1])
        with evaluating(self.model):
            hidden = self.hidden_states(token, end, depth, 2, (2, 3, 9))
            log_probability = self.log_probabilities(hidden, position, token[5:])
        return branch_scores(log_probability, branch, 2, mean=False)

    def log_likelihood(self, batch: PromptTreeBatch) -> Tensor:
        """Returns the summed log-probability `[B]` of each branch's tokens."""
        log_probability = self.label_log_probabilities(batch, batch.label_place, batch.label_token)
        return branch_scores(log_probability, batch.label_branch, len(batch.branch_case), mean=False)

    def label_log_probabilities(
        self, batch: PromptTreeBatch, place: Tensor, token: Tensor, smoothing: float = 0.0
    ) -> Tensor:
        """Returns log-probabilities `[L]` of tokens at places where the batch has labels: its own, or others."""
        return self.log_probabilities(self.batch_states(batch, place), place, token, smoothing)

    def batch_states(self, batch: PromptTreeBatch, place: Tensor) -> Tensor:
        """Returns the last hidden states `[N, D]` of a batch, whole at the places that are asked for."""
        forest = (batch.token, batch.end, batch.depth, batch.trunk, batch.stretches)
        return self.hidden_states(*forest, read=place.unique())

    def text_states(self, token: Tensor, size: Tensor, ahead: Tensor | None = None) -> Tensor:
        """Returns the last hidden states `[P + N, D]` of texts of so many tokens `[T]`, laid side by side.

        Each is read alone, or behind a prompt `[P]` that all of them share.
        """
        prompt = token[:0] if ahead is None else ahead
        trunk, end = len(prompt), len(prompt) + size.cumsum(0)
        whole = trunk + len(token)
        bounds = [trunk]
        for bound in end.tolist():
            if bound - bounds[-1] >= TEXT_TOKENS or bound == whole > bounds[-1]:
                bounds.append(bound)
        lead, place = torch.arange(trunk, device=token.device), torch.arange(trunk, whole, device=token.device)
        ends = torch.cat([torch.full_like(lead, whole), end.repeat_interleave(size)])
        depth = torch.cat([lead, trunk + place - (end - size).repeat_interleave(size)])
        if trunk == whole:
            trunk, bounds = 0, [0, whole]
        return self.hidden_states(torch.cat([prompt, token]), ends, depth, trunk, bounds)

    def hidden_states(
        self,
        token: Tensor,
        end: Tensor,
        depth: Tensor,
        trunk: int,
        stretches: Sequence[int],
        *,
        read: Tensor | None = None,
    ) -> Tensor:
        """Returns the last hidden states `[N, D]` of a forest of tokens, laid out as in `AttentionForest`.

        `read` holds positions `[n]`, each once, whose states are asked for; the others' lack the last feed-forward.
        """
        size, ahead = len(token), self.virtual_tokens()
        if ahead is not None:  # they are ancestors of all tokens, so a longer trunk
            first = torch.arange(len(ahead), device=token.device)
            end = torch.cat([torch.full_like(first, size), end]) + len(ahead)
            depth = torch.cat([first, depth + len(ahead)])
            token = nn.functional.pad(token, (len(ahead), 0))
            trunk, stretches = trunk + len(ahead), [bound + len(ahead) for bound in stretches]
        whole = len(token)
        if token.is_cuda:  # few lengths, so that kernels are compiled for few; padding tokens are trees of their own
            padding = torch.arange(whole, bucket(whole), device=token.device)
            token, depth = (nn.functional.pad(part, (0, len(padding))) for part in (token, depth))
            end = torch.cat([end, padding + 1])
        rows = read if read is None or ahead is None else read + len(ahead)
        with few_rows(self.layers()[-1], rows):
            output = self.body(
                **self.inputs(token[None], ahead),
                attention_mask=end[None, None, None],  # transformers passes a mask of four dimensions on as it is
                position_ids=depth[None] + self.first_position,
                use_cache=False,
                return_dict=True,
                forest=AttentionForest(end, depth, trunk, stretches),
            )
        return cast(Tensor, output.last_hidden_state)[0, whole - size : whole]

    def inputs(self, token: Tensor, ahead: Tensor | None) -> dict[str, Tensor]:
        """What the body reads for `[R, N]` ids; `[P, D]` embeddings, where there are any, replace the first P."""
        if ahead is None:
            return {"input_ids": token}
        words = self.model.get_input_embeddings()(token[:, len(ahead) :])
        return {"inputs_embeds": torch.cat([ahead.expand(len(token), -1, -1), words], 1)}


def load_causal(
    name: str, precision: Precision, dropout: float | None = None, quantization: Quantization | None = None
) -> CausalBackbone:
    """Loads a causal backbone with the prompt-tree attention, and proves on a small tree that it is exact.

    The arguments are those of `load_model`.

    Raises:
        InputError: the folder is no causal model, its weights are unreadable, or it does not honour trees.
    """
    from transformers import AutoModelForCausalLM

    model = load_model(AutoModelForCausalLM, "a causal model", name, precision, dropout, ATTENTION, quantization)
    replace_norms(model)
    backbone = CausalBackbone(model=model, name=name)
    prove_tree_attention(backbone)
    return backbone


PROBE = torch.tensor([3, 5, 1, 7, 4, 6, 8, 9, 2])
"""A trunk of two; behind it a branch of one, and a stem of two with two branches of two, which are scored."""


def prove_tree_attention(backbone: CausalBackbone) -> None:
    """Compares branches of a small forest with the same sequences through the model's own forward and attention.

    Raises:
        InputError: the scores differ, so the architecture does not take custom masks or positions.
    """
    model = backbone.model
    if next(model.parameters()).is_meta:  # a copy that is only counted computes nothing
        return
    token = PROBE % model.config.get_text_config().vocab_size
    prompt, answers = token[[0, 1, 3, 4]], (token[5:7], token[7:9])

    def plain_scores() -> Tensor:
        scores = []
        for answer in answers:
            logits = model(input_ids=torch.cat([prompt, answer])[None], use_cache=False).logits[0].float()
            scores.append(logits[3:-1].log_softmax(-1).gather(1, answer[:, None]).sum())
        return torch.stack(scores)

    with short_windows(model):
        prove_layout(backbone, "prompt trees", ATTENTION, plain_scores)


@contextmanager
def short_windows(model: Any, width: int = 3) -> Iterator[None]:
    """While it lasts, sliding windows are so short that a small proof reaches beyond them."""
    holders = [part for part in (model.config.get_text_config(), *model.modules()) if vars(part).get("sliding_window")]
    windows = [holder.sliding_window for holder in holders]
    for holder in holders:
        holder.sliding_window = width
    try:
        yield
    finally:
        for holder, window in zip(holders, windows, strict=True):
            holder.sliding_window = window
