"""Hard negatives: the items nearest to a history's titles, by words (BM25) or by a sentence encoder (two towers).

# S cases, I items, H history, T distinct words, D dimensions, N negatives
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from datamodules.contract.errors import InputError
from datamodules.protocol.candidates import CaseRequest
from datamodules.protocol.events import Events
from datamodules.protocol.pcg64 import generator
from datamodules.protocol.rules import Protocol

Ints = NDArray[np.int64]
ENCODER = "all-minilm-l6-v2"
_WORD = re.compile(r"[぀-ヿ㐀-鿿]|[^\W_぀-ヿ㐀-鿿]+")  # a character each where words are not spaced


def words(text: str) -> list[str]:
    """The words of a title, lower-cased; of Chinese and Japanese the characters.

    Example:
        >>> words("Star Wars: 星战"), words("WALL·E (2008)")
        (['star', 'wars', '星', '战'], ['wall', 'e', '2008'])
    """
    return _WORD.findall(text.lower())


class Retriever(ABC):
    """Scores all items for a history."""

    @abstractmethod
    def scores(self, history: Ints) -> NDArray[np.float64]:
        """`[I]` how near each item is to the items of a history."""


class BM25(Retriever):
    """Okapi BM25 with the history's titles as the query; Robertson and Zaragoza 2009, doi:10.1561/1500000019.

    Args:
        titles: `[I]` titles.
        k1: how fast repeated words saturate.
        b: how much long titles are discounted.

    Example:
        >>> near = BM25(["Star Wars", "Star Trek", "Casablanca"]).scores(np.array([0]))
        >>> [int(i) for i in np.argsort(-near)]
        [0, 1, 2]
    """

    def __init__(self, titles: Sequence[str], k1: float = 1.2, b: float = 0.75) -> None:
        counts = [Counter(words(title)) for title in titles]
        length = np.array([sum(count.values()) for count in counts], dtype=np.float64)
        mean = max(1.0, float(length.mean()))
        postings: dict[str, list[tuple[int, int]]] = {}
        for item, count in enumerate(counts):
            for word, times in count.items():
                postings.setdefault(word, []).append((item, times))
        self.counts, self.items = counts, len(titles)
        self.postings: dict[str, tuple[Ints, NDArray[np.float64]]] = {}
        for word, entries in postings.items():
            item_codes, times_in = (np.array(column) for column in zip(*entries, strict=True))
            rare = np.log(1 + (len(titles) - len(entries) + 0.5) / (len(entries) + 0.5))
            weight = rare * times_in * (k1 + 1) / (times_in + k1 * (1 - b + b * length[item_codes] / mean))
            self.postings[word] = (item_codes, weight)

    def scores(self, history: Ints) -> NDArray[np.float64]:
        """`[I]` BM25 of each title under the words of the history's titles."""
        total = np.zeros(self.items)
        query: Counter[str] = Counter()
        for item in history.tolist():
            query.update(self.counts[item])
        for word, times in query.items():
            item_codes, weight = self.postings[word]
            total[item_codes] += times * weight
        return np.round(total, 9)  # sums in another order must not turn a tie


class TwoTower(Retriever):
    """Mean of the history's title embeddings against each title's; embeddings in whole numbers, so that sums are exact.

    Args:
        embeddings: `[I, D]` unit vectors.
    """

    def __init__(self, embeddings: NDArray[np.float32]) -> None:
        self.embeddings = np.round(embeddings * 1000).astype(np.int64)

    def scores(self, history: Ints) -> NDArray[np.float64]:
        """`[I]` inner products with the history's mean."""
        near: NDArray[np.float64] = (self.embeddings @ self.embeddings[history].sum(axis=0)).astype(np.float64)
        return near


def title_embeddings(titles: Sequence[str], encoder: str = ENCODER) -> NDArray[np.float32]:
    """`[I, D]` unit vectors of titles by a sentence encoder, pooled as its files say, in float32 on the CPU."""
    import torch
    from transformers import AutoModel

    from datamodules.sources.pretrained import load_tokenizer, pooled, pooling_of, pretrained_folder

    tokenizer, pooling = load_tokenizer(encoder), pooling_of(encoder)
    model = AutoModel.from_pretrained(pretrained_folder(encoder), trust_remote_code=False, dtype=torch.float32).eval()
    made = []
    with torch.inference_mode():
        for begin in range(0, len(titles), 64):
            batch = tokenizer(
                list(titles[begin : begin + 64]), padding=True, truncation=True, max_length=64, return_tensors="pt"
            )
            hidden = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
            vector = pooled(hidden, batch["attention_mask"], pooling)
            made.append(torch.nn.functional.normalize(vector, dim=1).numpy())
    return np.concatenate(made)


def nearest(wanted: CaseRequest, events: Events, protocol: Protocol, retriever: Retriever) -> Ints:
    """`[S, N]` the items nearest to each case's history that the user never chose, nearest first.

    Equal scores are ordered by one permutation of the catalogue drawn from the seed.

    Raises:
        InputError: a user leaves too few items.
    """
    items = len(events.item_ids)
    order = np.argsort(generator(protocol.seed, "retrieval").random_raw(items), kind="stable")
    found = np.empty((len(wanted.user), protocol.negatives), dtype=np.int64)
    for row, (user, target, shown) in enumerate(zip(wanted.user, wanted.target, wanted.shown, strict=True)):
        score = retriever.scores(events.item[max(events.start[user], shown - protocol.history) : shown])
        seen = (
            events.item[events.start[user] : events.start[user + 1]] if protocol.exclude_seen else events.item[target]
        )
        free = np.ones(items, dtype=bool)
        free[seen] = False
        free[events.item[target]] = False
        if free.sum() < protocol.negatives:
            raise InputError(
                f"user {events.user_ids[user]!r} leaves {free.sum()} items to draw from, protocol.negatives is"
                f" {protocol.negatives}"
            )
        ranked = order[np.argsort(-score[order], kind="stable")]
        found[row] = ranked[free[ranked]][: protocol.negatives]
    return found
