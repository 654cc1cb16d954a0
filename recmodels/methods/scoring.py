"""How a language model's log-probabilities become scores of answers, in evaluation and for objectives.

# U cases, B branches, I different items, D hidden, L labelled tokens, T nodes of the catalogue's tree, P places, C tokens that may follow them
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from datamodules.contract.batch import BranchBatch, CatalogueTrie, PromptTreeBatch
from datamodules.contract.errors import InputError
from recmodels.backbones.base import Backbone
from recmodels.backbones.causal import CausalBackbone
from recmodels.engine.prompt_tree import branch_scores, log_sums
from recmodels.metrics.rating import rating_values
from recmodels.objectives.base import BranchScores, Objective, Representations, TokenScores
from recmodels.retrieval.exhaustive import catalogue_scores
from recmodels.retrieval.scorer import as_causal

Scoring = Literal["sum", "mean", "catalogue"]
Predictor = Callable[..., Tensor]
"""From places, tokens and the share of smoothing to log-probabilities."""


def scoring_of(scoring: Scoring | None, length_normalised: bool, retrieval: str) -> Scoring:
    """Returns the rule that options ask for, in the newer spelling or the older one.

    Raises:
        InputError: they contradict each other, or beams would be ranked among what the catalogue allows.

    Example:
        >>> scoring_of(None, False, "beam"), scoring_of(None, True, "exhaustive")
        ('sum', 'mean')
    """
    if length_normalised and scoring not in (None, "mean"):
        raise InputError(f"model.length_normalised is model.scoring mean, and model.scoring is {scoring}; keep one")
    if scoring == "catalogue" and retrieval == "beam":
        raise InputError("model.scoring catalogue scores whole catalogues; use model.retrieval=exhaustive")
    return scoring or ("mean" if length_normalised else "sum")


@dataclass(frozen=True)
class DataKnown:
    """What scores and objectives read of the data beside its batches.

    Attributes:
        trie: the catalogue.
        blank: `[P]` ids of the prompt without a history.
    """

    trie: CatalogueTrie | None = None
    blank: Tensor | None = None

    def and_then(self, later: DataKnown) -> DataKnown:
        """What is known of later data, and of these where that is silent."""
        known = {name: value for name, value in vars(later).items() if value is not None}
        return replace(self, **known)

    def on(self, device: torch.device) -> DataKnown:
        """The same on a device."""
        here = self.trie is None or self.trie.token.device == device
        return self if here else replace(self, trie=cast(CatalogueTrie, self.trie).to(device))


def known_of(data: Any, rule: Scoring, objective: Objective | None) -> DataKnown:
    """Returns what a rule of scoring, and in training an objective, read of a data module.

    Raises:
        InputError: its answers are no titles of the catalogue, or its prompts tell more of a user than the history.
    """
    asks = objective is not None and (
        objective.needs_catalogue or objective.needs_representations or objective.needs_effects
    )
    if rule != "catalogue" and not asks:
        return DataKnown()
    asked_by = (
        "model.scoring catalogue" if objective is None or not asks else f"model.objective {objective.needs.name!r}"
    )
    collator = getattr(data, "collator", None)
    trie: CatalogueTrie | None = getattr(collator, "trie", None)
    if trie is None:
        raise InputError(
            f"{asked_by} needs answers out of the whole catalogue, of a causal backbone; use data.task=matching"
        )
    if objective is None or not objective.needs_effects:
        return DataKnown(trie)
    blank = cast(Any, collator).slates.blank_prompt()
    if blank is None:
        raise InputError(f"{asked_by} needs prompts of the history alone, in one wording; use data.cell P1,I0,T2")
    return DataKnown(trie, torch.tensor(blank))


@torch.no_grad()
def title_scores(backbone: Backbone, data: Any, rule: Scoring) -> Tensor | None:
    """Returns scores `[I]` of a catalogue's titles behind a prompt without a history; None where there is no such one."""
    collator = getattr(data, "collator", None)
    trie: CatalogueTrie | None = getattr(collator, "trie", None)
    blank = None if trie is None else cast(Any, collator).slates.blank_prompt()
    if trie is None or blank is None:
        return None
    device = next(backbone.model.parameters()).device
    trie, prompt = trie.to(device), torch.tensor([blank], device=device)
    length = torch.tensor([len(blank)], device=device)
    scores = catalogue_scores(as_causal(backbone), prompt, length, trie, among_allowed=rule == "catalogue")[0]
    return scores / (trie.depth[trie.last] + 1) if rule == "mean" else scores


def check_r_drop(weight: float) -> float:
    """Passes on a weight of R-Drop that is a number from 0.

    Raises:
        InputError: it is not.
    """
    if not 0 <= weight < float("inf"):
        raise InputError(f"model.r_drop is {weight}, must be at least 0")
    return weight


def check_dropout(network: nn.Module) -> None:
    """Refuses R-Drop for a network without dropout, whose two passes would be the same.

    Raises:
        InputError: there is none.
    """
    for module in network.modules():
        told = {"p": module.p} if isinstance(module, nn.Dropout) else vars(module)
        if any(
            isinstance(value, float) and value > 0 for name, value in told.items() if name == "p" or "dropout" in name
        ):
            return
    raise InputError(
        "model.r_drop compares two passes with dropout, and there is none; set model.dropout or the method's"
    )


def predictor(backbone: Any, batch: BranchBatch) -> Predictor:
    """Returns what gives log-probabilities `[L]` of tokens at places of a batch."""
    return partial(backbone.label_log_probabilities, batch)  # the collator and the backbone go by one configuration


def token_scores(
    predict: Predictor,
    batch: BranchBatch,
    trie: CatalogueTrie | None = None,
    reads: Literal["choices", "probabilities"] | None = None,
    smoothing: float = 0.0,
) -> TokenScores:
    """Returns log-probabilities of a batch's labels, and what the catalogue allows in their places."""
    branch = batch.label_branch
    if trie is None or reads is None:
        log_probability = predict(batch.label_place, batch.label_token, smoothing)
        return TokenScores(branch, log_probability)
    above = trie.parent[nodes_of(trie, batch.label_token, branch)]
    ends = (trie.item_start[above + 1] > trie.item_start[above]) & (above >= 0)
    choices = trie.child_start[above + 2] - trie.child_start[above + 1] + ends
    if reads == "choices":
        log_probability = predict(batch.label_place, batch.label_token, smoothing)
        return TokenScores(branch, log_probability, choices)
    place, index = batch.label_place.unique(return_inverse=True)
    node = above.new_zeros(len(place)).index_copy(0, index, above)
    start, count = trie.child_start[node + 1], trie.child_start[node + 2] - trie.child_start[node + 1]
    owner = torch.arange(len(place), device=place.device).repeat_interleave(count)
    within = torch.arange(len(owner), device=place.device) - (count.cumsum(0) - count)[owner]
    follows = trie.token[trie.child[start[owner] + within]]  # [C]
    value = predict(torch.cat([batch.label_place, place[owner]]), torch.cat([batch.label_token, follows]))
    log_probability, other = value.split([len(branch), len(follows)])
    if smoothing:
        log_probability = predict(batch.label_place, batch.label_token, smoothing)
    return TokenScores(branch, log_probability, choices, log_sums(other, owner, len(place))[index])


def nodes_of(trie: CatalogueTrie, token: Tensor, branch: Tensor) -> Tensor:
    """Returns the node `[L]` at which each token of some answers stands; answers are whole and in order.

    Raises:
        InputError: an answer is none of the catalogue's.
    """
    first = torch.searchsorted(branch, branch)  # index of the first label of its branch
    depth = torch.arange(len(branch), device=branch.device) - first
    width = int(torch.maximum(trie.token.max(), token.max())) + 1
    key = (trie.parent[trie.child] + 1) * width + trie.token[trie.child]  # ascending
    node = torch.full_like(token, -1)
    for mine in ((depth == number).nonzero().flatten() for number in range(int(depth.max()) + 1)):
        above = node[mine - 1].where(depth[mine] > 0, -1)
        wanted = (above + 1) * width + token[mine]
        at = torch.searchsorted(key, wanted).clamp(max=len(key) - 1)
        if not torch.equal(key[at], wanted):
            raise InputError(
                "an answer is none of the catalogue's: its wording is another; use one template in training"
            )
        node[mine] = trie.child[at]
    return node


def answer_scores(tokens: TokenScores, branches: int, rule: Scoring) -> Tensor:
    """Returns scores `[B]` of answers: sums of log-probabilities, means, or sums among what the catalogue allows.

    Example:
        >>> tokens = TokenScores(torch.tensor([0, 0]), torch.tensor([-2.0, -4.0]))
        >>> answer_scores(tokens, 1, "mean").item()
        -3.0
    """
    value = tokens.log_probability
    if rule == "catalogue":
        if tokens.allowed is None:
            raise RuntimeError("nothing was computed of what the catalogue allows")
        value = value - tokens.allowed
    return branch_scores(value, tokens.branch, branches, mean=rule == "mean")


def representations(backbone: CausalBackbone, batch: PromptTreeBatch, hidden: Tensor) -> Representations:
    """Returns users and items as vectors, of states `[N, D]` of a batch and of its answers read alone."""
    size = torch.bincount(batch.label_branch, minlength=len(batch.branch_case))
    item, index = batch.branch_item.unique(return_inverse=True)
    number = torch.arange(len(index), device=index.device)
    first = torch.full_like(item, len(index)).scatter_reduce(0, index, number, "amin")  # [I] branch of each item
    chosen, place = first.sort()
    text = batch.label_token[torch.isin(batch.label_branch, chosen)]
    vectors = backbone.text_states(text, size[chosen])[size[chosen].cumsum(0) - 1][place.argsort()]
    begin = torch.searchsorted(batch.branch_case, torch.arange(len(batch.case), device=index.device))
    user = hidden[batch.label_place[(size.cumsum(0) - size)[begin]]]
    right = torch.zeros(len(user), len(item), dtype=torch.bool, device=index.device)
    right[batch.branch_case[batch.relevance > 0], index[batch.relevance > 0]] = True
    owner = batch.owner if len(batch.owner) else torch.arange(len(user), device=index.device)
    same = (owner[:, None] == owner).float()
    return Representations(user, vectors, right, same @ right.float() > 0)


def history_effects(backbone: CausalBackbone, batch: PromptTreeBatch, hidden: Tensor, blank: Tensor) -> Tensor:
    """Returns log-probabilities `[L]` of the right answers' tokens under what the history adds to the logits.

    Args:
        backbone: what the states are of.
        batch: whose answers are read again, behind the prompt without a history.
        hidden: `[N, D]` states of the batch.
        blank: `[P]` ids of that prompt.

    Returns:
        Under the softmax of logits less those without a history; 0 for tokens of wrong answers.
    """
    right = batch.relevance > 0
    label = right[batch.label_branch].nonzero().flatten()
    size = torch.bincount(batch.label_branch, minlength=len(right))[right]
    last = size.cumsum(0) - 1
    keep = torch.ones(len(label), dtype=torch.bool, device=label.device).index_fill(0, last, False)
    states = backbone.text_states(batch.label_token[label[keep]], size - 1, blank)
    place = len(blank) + keep.cumsum(0) - 1 - keep.long()  # of the token before, whichever answer it is of
    place[last - size + 1] = len(blank) - 1
    pair = torch.cat([hidden[batch.label_place[label]], states[place]], -1)
    number = torch.arange(len(label), device=label.device)
    value = backbone.log_probabilities(pair, number, batch.label_token[label], paired=True)
    return value.new_zeros(len(batch.label_token)).index_copy(0, label, value)


def training_loss(
    backbone: Backbone,
    batch: BranchBatch,
    objective: Objective,
    rule: Scoring,
    known: DataKnown,
    reference: Tensor | None,
    r_drop: float = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns the loss of a training batch, and what is observed of it by name.

    Under `r_drop` the batch is read twice, each time with other dropout: the loss is the mean of both, and `r_drop` times
    how far the probabilities before the right answers' tokens are apart.
    """
    known = known.on(batch.branch_case.device)
    alone = r_drop == 0 and not (objective.needs_representations or objective.needs_effects)
    place = batch.label_place
    passes = 2 if r_drop else 1
    read = partial(cast(Any, backbone).batch_states, batch, place)
    states: list[Tensor | None] = [None if alone else read() for _ in range(passes)]
    losses = []
    for hidden in states:
        scores = training_scores(backbone, batch, objective, rule, known, reference, hidden)
        losses.append(objective(scores))
    observed = objective.observed(scores)
    if not r_drop:
        return losses[0], observed
    right = (batch.relevance > 0)[batch.label_branch]
    first, second = (cast(Tensor, hidden)[place[right]] for hidden in states)
    apart = backbone.divergence(first, second, batch.label_token[right]).mean()
    return (losses[0] + losses[1]) / 2 + r_drop * apart, observed | {"r_drop": apart.detach()}


def training_scores(
    backbone: Backbone,
    batch: BranchBatch,
    objective: Objective,
    rule: Scoring,
    known: DataKnown,
    reference: Tensor | None,
    hidden: Tensor | None,
) -> BranchScores:
    """Returns what an objective reads of a training batch, of its states where they are computed."""
    reads = "probabilities" if rule == "catalogue" else objective.needs_catalogue
    predict, vectors, effects = predictor(backbone, batch), None, None
    if hidden is not None:
        predict = partial(backbone.log_probabilities, hidden)
        causal, tree = cast(CausalBackbone, backbone), cast(PromptTreeBatch, batch)  # as `known_of` saw
        vectors = representations(causal, tree, hidden) if objective.needs_representations else None
        blank = known.blank if objective.needs_effects else None
        effects = None if blank is None else history_effects(causal, tree, hidden, blank.to(hidden.device))
    tokens = token_scores(predict, batch, known.trie, reads, objective.smoothing)
    branches = len(batch.branch_case)
    return BranchScores(
        answer_scores(tokens, branches, "sum"),
        torch.bincount(batch.label_branch, minlength=branches),
        answer_scores(tokens, branches, rule),
        batch.relevance,
        batch.branch_case,
        rating_values(batch.branch_item) if batch.answers == "ratings" else None,
        reference,
        replace(tokens, effect=effects),
        vectors,
    )
