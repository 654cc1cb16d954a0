"""What an objective is: a class with its options, from the scores of a batch's branches to a loss.

# B branches, U cases, I different items, D hidden, L labelled tokens, P pairs of a right and a wrong answer
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from datamodules.contract.errors import InputError
from datamodules.contract.objectives import ObjectiveNeeds


@dataclass(frozen=True)
class TokenScores:
    """The labelled tokens of a batch's answers.

    Attributes:
        branch: `[L]` branch of each, sorted.
        log_probability: `[L]`.
        choices: `[L]` number of ways in which the catalogue's answers go on at its place; None where nobody asked.
        allowed: `[L]` log-probability of all tokens together that do so; None likewise.
        effect: `[L]` log-probability under the softmax of what the history adds to the logits; 0 for tokens of wrong
            answers, None where nobody asked.
    """

    branch: Tensor
    log_probability: Tensor
    choices: Tensor | None = None
    allowed: Tensor | None = None
    effect: Tensor | None = None


@dataclass(frozen=True)
class Representations:
    """Users and items as vectors of the same model.

    Attributes:
        user: `[U, D]` state before the answers of each case.
        item: `[I, D]` state at the end of each answer of the batch, read without a prompt; equal answers are one.
        right: `[U, I]` whether it is the case's right answer.
        known: `[U, I]` whether it is a right answer of any case of the same user.
    """

    user: Tensor
    item: Tensor
    right: Tensor
    known: Tensor


@dataclass(frozen=True)
class BranchScores:
    """All that an objective may read of a training batch.

    Attributes:
        log_likelihood: `[B]` summed log-probability of each branch's tokens.
        length: `[B]` number of those tokens.
        score: `[B]` score by the model's rule, the sum or the mean a token.
        relevance: `[B]` gains; positive for right answers.
        branch_case: `[B]` case of each branch, sorted.
        value: `[B]` what each answer stands for; None unless answers are ratings.
        reference: `[B]` `log_likelihood` under the weights before training; None unless the objective asks for it.
        tokens: the answers token by token, with what the catalogue allows where the objective asks for that.
        representations: of users and items; None unless the objective asks for them.
    """

    log_likelihood: Tensor
    length: Tensor
    score: Tensor
    relevance: Tensor
    branch_case: Tensor
    value: Tensor | None = None
    reference: Tensor | None = None
    tokens: TokenScores | None = None
    representations: Representations | None = None


class Objective(ABC):
    """What tuning minimises; a subclass names its options in its constructor."""

    needs: ClassVar[ObjectiveNeeds]
    """What the data must offer; the command line hands it to the data module."""
    needs_reference: ClassVar[bool] = False
    """Whether it reads `BranchScores.reference`."""
    needs_catalogue: Literal["choices", "probabilities"] | None = None
    """What it reads of the catalogue: the number of tokens allowed in each place, or their probability, too."""
    needs_representations: ClassVar[bool] = False
    """Whether it reads `BranchScores.representations`."""
    needs_effects: ClassVar[bool] = False
    """Whether it reads `TokenScores.effect`."""
    smoothing: float = 0.0
    """Share of each label that is spread over the whole vocabulary before its log-probability is taken."""

    @abstractmethod
    def __call__(self, scores: BranchScores) -> Tensor:
        """Returns the loss of a batch, a scalar that is lower for better scores.

        Raises:
            ValueError: the batch has not what the objective needs.
        """

    def observed(self, scores: BranchScores) -> dict[str, Tensor]:
        """Returns what the run logs of a training batch beside the loss, by name."""
        return {}


def log_shares(score: Tensor, branch_case: Tensor) -> Tensor:
    """Returns `[B]`: the log-softmax of each branch's score among those of its case.

    Example:
        >>> import torch
        >>> log_shares(torch.zeros(4), torch.tensor([0, 0, 1, 1])).exp()
        tensor([0.5000, 0.5000, 0.5000, 0.5000])
    """
    cases = int(branch_case[-1]) + 1
    # The largest score of each case keeps the exponentials in range.
    top = score.detach().new_full((cases,), float("-inf")).scatter_reduce(0, branch_case, score.detach(), "amax")
    total = score.new_zeros(cases).index_add(0, branch_case, (score - top[branch_case]).exp())
    return score - top[branch_case] - total.log()[branch_case]


def pairs(scores: BranchScores, objective: str) -> tuple[Tensor, Tensor]:
    """Returns `[P]` indices of a right and of a wrong answer of the same case, for every such pair.

    Raises:
        ValueError: a case has no wrong answer.

    Example:
        >>> import torch
        >>> gain, case, none = torch.tensor([0.0, 1, 0, 1, 0]), torch.tensor([0, 0, 0, 1, 1]), torch.zeros(5)
        >>> [index.tolist() for index in pairs(BranchScores(none, none, none, gain, case), "dpo")]
        [[1, 1, 3], [0, 2, 4]]
    """
    right = scores.relevance > 0
    wrong = right.new_zeros(int(scores.branch_case[-1]) + 1).index_put((scores.branch_case[~right],), ~right[~right])
    if not bool(wrong.all()):
        raise ValueError(f"the {objective} objective needs negatives; set data.train_negatives")
    same = scores.branch_case[:, None] == scores.branch_case
    won, lost = (same & right[:, None] & ~right).nonzero(as_tuple=True)
    return won, lost


def gains(scores: BranchScores, beta: float) -> Tensor:
    """Returns `[B]`: how much likelier each answer has become since training began, times `beta`."""
    if scores.reference is None:
        raise RuntimeError("no reference was computed")
    return beta * (scores.log_likelihood - scores.reference)


def check_positive(**options: float) -> None:
    """Raises `InputError` for an option of an objective that is not a finite number above 0."""
    for name, value in options.items():
        if not 0 < value < float("inf"):
            raise InputError(f"model.objective.{name} is {value}, must be above 0")
