"""BM25 over titles: a text search whose query is the history.

# U cases, B branches, H history, I items, K terms of the longest title, V vocabulary
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from datamodules.contract.batch import EventBatch, InteractionBatch
from datamodules.contract.errors import InputError
from recmodels.baselines.closed_form import ClosedForm, sparse_scores

_TERM = re.compile(r"[\u3400-\u9fff]|[^\W\u3400-\u9fff]+")  # a word, or one Chinese character


class BM25(ClosedForm):
    """Scores an item's title against all titles of the history together.

    Robertson and Zaragoza 2009, doi:10.1561/1500000019; the weight of rare terms is the one that cannot be negative,
    log(1 + (N - n + 1/2) / (n + 1/2)).

    Args:
        k1: how slowly repetitions of a term saturate.
        b: how much a title's length counts against it, 0 to 1.
        cutoffs: the k of HR@k and NDCG@k.

    Raises:
        InputError: a parameter is out of its range.
    """

    solved: ClassVar[tuple[str, ...]] = ("term", "count", "weight")
    term: Tensor  # [I, K]
    count: Tensor  # [I, K] in the title, 0 at padding
    weight: Tensor  # [I, K]

    def __init__(self, k1: float = 1.2, b: float = 0.75, cutoffs: Sequence[int] = (1, 3, 5, 10)) -> None:
        super().__init__(cutoffs=cutoffs)
        if not 0 <= k1 < float("inf"):
            raise InputError(f"model.k1 is {k1}, must be a number from 0")
        if not 0 <= b <= 1:
            raise InputError(f"model.b is {b}, must be 0 to 1")
        self.k1, self.b = k1, b

    def solve(self, events: EventBatch) -> dict[str, Tensor]:
        """Indexes the titles."""
        term, count, weight = index_titles(events.titles, self.k1, self.b)
        return {"term": term, "count": count, "weight": weight}

    def score_branches(self, batch: InteractionBatch) -> Tensor:
        """Returns scores `[B]`: weights of an item's terms, times how often the history's titles hold them."""
        real = (batch.history >= 0)[..., None]
        item = batch.history.clamp(min=0)
        query = self.weight.new_zeros(len(item), int(self.term.max()) + 1)
        query.scatter_add_(1, self.term[item].flatten(1), (self.count[item] * real).flatten(1))
        return sparse_scores(self.term, self.weight, query, batch.branch_case, batch.branch_item)


def terms(text: str) -> list[str]:
    """Returns the words in lower case; of Chinese text single characters.

    Example:
        >>> terms("L.A. Confidential 2: 红楼")
        ['l', 'a', 'confidential', '2', '红', '楼']
    """
    return _TERM.findall(text.lower())


def index_titles(titles: Sequence[str], k1: float = 1.2, b: float = 0.75) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the terms of each title with their BM25 weights.

    Returns:
        `[I, K]` numbers of terms, `[I, K]` how often the title holds each, and `[I, K]` weights, both 0 at padding.

    Example:
        >>> term, count, weight = index_titles(["Alien", "Alien Alien Three"])
        >>> term.tolist(), count.tolist()
        ([[0, 0], [0, 1]], [[1.0, 0.0], [2.0, 1.0]])
    """
    documents = [Counter(terms(title)) for title in titles]
    number = {term: index for index, term in enumerate(dict.fromkeys(t for document in documents for t in document))}
    width = max(1, *(len(document) for document in documents), 1)
    term = torch.zeros(len(documents), width, dtype=torch.long)
    count = torch.zeros(len(documents), width)
    for row, document in enumerate(documents):
        for column, (word, often) in enumerate(document.items()):
            term[row, column], count[row, column] = number[word], often
    holding = torch.bincount(term[count > 0], minlength=max(1, len(number))).double()
    rarity = torch.log1p((len(documents) - holding + 0.5) / (holding + 0.5))
    length = count.double().sum(1, keepdim=True)
    saturated = count * (k1 + 1) / (count + k1 * (1 - b + b * length / length.mean().clamp(min=1e-12)))
    weight = torch.where(count > 0, rarity[term] * saturated, 0.0)
    return term, count, weight.float()
