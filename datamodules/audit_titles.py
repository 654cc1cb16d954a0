"""What an audit looks for in titles: items that a model which answers in titles cannot tell apart.

# I items, S cases
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from datamodules.finding import Finding, verdict_of
from datamodules.retrieval import words
from datamodules.sequences import Sequences


def plain(title: str) -> str:
    """A title without case, punctuation, articles and the year in brackets.

    Example:
        >>> plain("The Matrix (1999)") == plain("Matrix, The"), plain("!!!")
        (True, '!!!')
    """
    found = words(title)
    if len(found) > 1 and title.rstrip().endswith(")") and found[-1].isdigit() and len(found[-1]) == 4:
        found = found[:-1]
    kept = sorted(word for word in found if word not in ("the", "a", "an")) or found
    return " ".join(kept) or title.strip()


def duplicate_titles(made: Sequences) -> Finding:
    """Items that share their title with another: a model that answers in titles cannot tell them apart."""
    counts = Counter(title.strip() for title in made.titles)
    count = sum(n for n in counts.values() if n > 1)
    verdict, remedy = verdict_of(
        count, "warning", "add what tells them apart (a year, a creator) to the title, or merge them"
    )
    return Finding("duplicate titles", verdict, count, len(made.titles), "items that share a title", remedy)


def target_title_in_history(made: Sequences) -> Finding:
    """Test targets whose very title stands in the prompt's history through another item."""
    places: dict[str, int] = {}
    title = np.array([places.setdefault(each.strip(), len(places)) for each in made.titles], dtype=np.int64)
    test, true = made.test, made.item[made.test.target]
    found = np.zeros(len(test), dtype=bool)
    for back in range(1, made.history + 1):
        place = test.shown - back
        item = made.item[np.maximum(place, 0)]
        found |= (place >= made.start[test.user]) & (item != true) & (title[item] == title[true])
    count = int(found.sum())
    verdict, remedy = verdict_of(count, "leak", "merge items of equal titles")
    told = "test prompts that show the target's title as another item"
    return Finding("target title in the history", verdict, count, len(made.test), told, remedy)


def near_duplicates(made: Sequences) -> Finding:
    """Test targets whose title is all but equal to that of another item in training."""
    key = [plain(title) for title in made.titles]
    trained: dict[str, set[int]] = {}
    for item in np.unique(made.item[made.trained]).tolist():
        trained.setdefault(key[item], set()).add(item)
    targets = made.item[made.test.target].tolist()
    count = sum(bool(trained.get(key[item], set()) - {item}) for item in targets)
    verdict, remedy = verdict_of(count, "warning", "merge editions of one item before the split")
    told = "test targets with a twin in training (equal but for case, punctuation, articles, year)"
    return Finding("near-duplicate items across splits", verdict, count, len(targets), told, remedy)
