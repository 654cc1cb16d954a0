"""What a language model does with a batch that ranks a whole catalogue: scores all of it, or searches it.

# U cases, B branches, I items of the catalogue, H items found
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from datamodules.contract.batch import CatalogueBatch, CatalogueTrie
from datamodules.contract.errors import InputError
from recmodels.backbones.base import Backbone
from recmodels.backbones.causal import CausalBackbone
from recmodels.base import CaseScores, Recommender
from recmodels.retrieval.beam_search import Retrieved, beam_search
from recmodels.retrieval.exhaustive import catalogue_scores


def as_causal(backbone: Backbone) -> CausalBackbone:
    """Returns the backbone, which must be a causal one.

    Raises:
        InputError: it is not.
    """
    if not isinstance(backbone, CausalBackbone):
        raise InputError(
            f"backbone {backbone.name!r} ({backbone.family}) is an encoder-decoder; a catalogue's tree needs a causal"
            " one, use model.retrieval=exhaustive"
        )
    return backbone


def check_beams(beams: int, cutoffs: Sequence[int]) -> None:
    """Raises `InputError` for fewer beams than one, or than the deepest cut-off that they are to fill."""
    least = max(cutoffs, default=1)
    if beams < least:
        reason = ", the largest of model.cutoffs" if cutoffs else ""
        raise InputError(f"model.beams is {beams}, must be at least {least}{reason}")


def trie_on_device(batch: CatalogueBatch, last: CatalogueTrie | None) -> CatalogueTrie:
    """Returns the catalogue's tree on the batch's device: the `last` one that was moved there, where it is the same."""
    device = batch.prompt.device
    if last is None or last.key != batch.trie.key or last.token.device != device:
        return batch.trie.to(device)
    return last


def score_catalogue(backbone: Backbone, batch: CatalogueBatch, trie: CatalogueTrie, rule: str) -> Tensor:
    """Returns scores `[B]` of a batch's candidates by a rule (`sum`, `mean`, `catalogue`), from those of every title."""
    prompts = batch.prompt, batch.prompt_length
    scores = catalogue_scores(as_causal(backbone), *prompts, trie, among_allowed=rule == "catalogue")
    if rule == "mean":
        scores = scores / (trie.depth[trie.last] + 1)
    return scores[batch.branch_case, batch.branch_item]


def retrieve(
    backbone: Backbone, batch: CatalogueBatch, trie: CatalogueTrie, beams: int, *, length_normalised: bool
) -> Retrieved:
    """What beam search finds among a batch's candidates; arguments as `score_catalogue`'s and `beam_search`'s."""
    candidate = torch.zeros(len(batch.case), len(trie.item), dtype=torch.bool, device=batch.case.device)
    candidate[batch.branch_case, batch.branch_item] = True
    return beam_search(
        as_causal(backbone),
        batch.prompt,
        batch.prompt_length,
        trie,
        beams,
        candidate=candidate,
        length_normalised=length_normalised,
    )


def retrieved_cases(batch: CatalogueBatch, retrieved: Retrieved) -> CaseScores:
    """Returns the items found `[H]` as scores of the batch's cases; candidates that were not found count as misses."""
    gain = batch.relevance.new_zeros(len(batch.case), len(batch.trie.item))
    gain[batch.branch_case, batch.branch_item] = batch.relevance
    return CaseScores(
        case=batch.case,
        rule=batch.rule,
        branch_case=retrieved.user,
        branch_item=retrieved.item,
        score=Recommender.check_scores(retrieved.score),
        relevance=gain[retrieved.user, retrieved.item],
        **(Recommender.case_totals(batch) | {"tokens": retrieved.tokens}),
    )
