"""What an audit looks for in data and frozen cases: one pure function for each kind of leak.

# U users, I items, E events, S cases, C candidates
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from datamodules.protocol.hard_negatives import words
from datamodules.protocol.rules import Protocol
from datamodules.protocol.sequences import Cases, Sequences

Verdict = Literal["ok", "note", "warning", "leak"]


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        check: its name.
        verdict: `ok`; `note`, true of the rules and no fault; `warning` or `leak`, which make the audit fail.
        count: how many.
        of: out of how many.
        told: what was counted.
        remedy: what to do next; empty where nothing is to be done.
    """

    check: str
    verdict: Verdict
    count: int
    of: int
    told: str
    remedy: str = ""

    @property
    def alarms(self) -> bool:
        """Whether the audit fails."""
        return self.verdict in ("warning", "leak")


def verdict_of(count: int, bad: Verdict, remedy: str) -> tuple[Verdict, str]:
    """The bad verdict and its remedy where anything was counted.

    Example:
        >>> verdict_of(0, "leak", "mend it"), verdict_of(2, "leak", "mend it")
        (('ok', ''), ('leak', 'mend it'))
    """
    return (bad, remedy) if count else ("ok", "")


def plain(title: str) -> str:
    """A title without case, punctuation, articles and the year in brackets.

    Example:
        >>> plain("The Matrix (1999)") == plain("Matrix, The"), plain("!!!")
        (True, '!!!')
    """
    named = words(title)
    if len(named) > 1 and title.rstrip().endswith(")") and named[-1].isdigit() and len(named[-1]) == 4:
        named = named[:-1]
    remaining = sorted(word for word in named if word not in ("the", "a", "an")) or named
    return " ".join(remaining) or title.strip()


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
    repeated = np.zeros(len(test), dtype=bool)
    for back in range(1, made.history + 1):
        index = test.shown - back
        item = made.item[np.maximum(index, 0)]
        repeated |= (index >= made.start[test.user]) & (item != true) & (title[item] == title[true])
    count = int(repeated.sum())
    verdict, remedy = verdict_of(count, "leak", "merge items of equal titles")
    text = "test prompts that show the target's title as another item"
    return Finding("target title in the history", verdict, count, len(made.test), text, remedy)


def near_duplicates(made: Sequences) -> Finding:
    """Test targets whose title is all but equal to that of another item in training."""
    key = [plain(title) for title in made.titles]
    trained: dict[str, set[int]] = {}
    for item in np.unique(made.item[made.trained]).tolist():
        trained.setdefault(key[item], set()).add(item)
    targets = made.item[made.test.target].tolist()
    count = sum(bool(trained.get(key[item], set()) - {item}) for item in targets)
    verdict, remedy = verdict_of(count, "warning", "merge editions of one item before the split")
    text = "test targets with a twin in training (equal but for case, punctuation, articles, year)"
    return Finding("near-duplicate items across splits", verdict, count, len(targets), text, remedy)


Ints = NDArray[np.int64]
_ROWS = 50_000  # lists looked at together
ALARM = 1e-5
"""Chance of a false alarm of each statistical check."""


def audit(made: Sequences, protocol: Protocol) -> list[Finding]:
    """All checks of frozen cases that need no text but titles."""
    return [
        trained_test_items(made),
        validation_in_test_history(made),
        future_in_history(made),
        training_after_test(made, protocol),
        order_in_ids(made),
        users_in_two_splits(made, protocol),
        positives_among_negatives(made, protocol),
        position_of_the_positive(made),
        target_title_in_history(made),
        duplicate_titles(made),
        near_duplicates(made),
        tied_timestamps(made),
    ]


def trained_test_items(made: Sequences) -> Finding:
    """Held-out events that training sees, themselves or as a copy with the same user, item and time."""
    trained, held = made.trained, np.concatenate((made.test.target, made.validation.target))
    time = made.timestamp if len(made.timestamp) else np.arange(len(made.item), dtype=np.float64)
    events = pl.DataFrame({"user": made.owner, "item": made.item, "time": time})
    seen = trained[held]
    copies = events[held].with_row_index().join(events.filter(pl.Series(trained)), on=events.columns, how="semi")
    seen[copies["index"].to_numpy()] = True
    count = int(seen.sum())
    verdict, remedy = verdict_of(count, "leak", "remove repeated rows, or cut the split before the held-out events")
    return Finding(
        "test items in training prompts", verdict, count, len(held), "held-out events that training sees", remedy
    )


def _largest(values: NDArray[Any], made: Sequences, cases: Cases) -> NDArray[Any]:
    """`[S]` the largest of the `[E]` values among what each case may show; the last value again where that is nothing."""
    spans = np.stack((made.start[cases.user], cases.shown), axis=1).ravel()
    found: NDArray[Any] = np.fmax.reduceat(np.append(values, values[-1:]), spans)[::2] if len(spans) else values[:0]
    return found


def _has_history(made: Sequences, cases: Cases) -> NDArray[np.bool_]:
    return np.asarray(cases.shown > made.start[cases.user])


def validation_in_test_history(made: Sequences) -> Finding:
    """Validation events that a test prompt may show: by convention under leave-one-out, if they are earlier."""
    test = made.test
    before = np.zeros(len(made.item) + 1, dtype=np.int64)
    before[made.validation.target + 1] = 1
    before = np.cumsum(before)
    inside = before[test.shown] > before[made.start[test.user]]
    shown, wrong = int(inside.sum()), 0
    if len(made.timestamp):
        time = np.full(len(made.item), -np.inf)
        time[made.validation.target] = made.timestamp[made.validation.target]
        wrong = int((inside & (_largest(time, made, test) > made.timestamp[test.target])).sum())
    remedy = "show a test prompt only what is earlier than its target"
    verdict: Verdict = "leak" if wrong else "note" if shown else "ok"
    text = (
        "test cases that may show a validation item from the future"
        if wrong
        else "test cases that may show an earlier validation item (convention)"
    )
    return Finding(
        "validation items in test history", verdict, wrong or shown, len(made.test), text, remedy if wrong else ""
    )


def future_in_history(made: Sequences) -> Finding:
    """Cases whose prompt may show an event later than the target, or the target itself."""
    count = 0
    for cases in (made.validation, made.test):
        wrong = (made.start[cases.user] <= cases.target) & (cases.target < cases.shown)
        if len(made.timestamp):
            late = _largest(made.timestamp, made, cases) > made.timestamp[cases.target]
            wrong |= late & _has_history(made, cases)
        count += int(wrong.sum())
    verdict, remedy = verdict_of(count, "leak", "sort by time as numbers, and end each history before its target")
    of = len(made.validation) + len(made.test)
    return Finding("future interactions", verdict, count, of, "cases whose history is later than the target", remedy)


def training_after_test(made: Sequences, protocol: Protocol) -> Finding:
    """Training events later than the first test event: a leak under a temporal split, inherent to the others."""
    if not len(made.timestamp) or not len(made.test):
        return Finding("training after test", "ok", 0, 0, "no timestamps")
    time = made.timestamp[made.trained]
    count = int((time > made.timestamp[made.test.target].min()).sum())
    text = "training events later than the first test event"
    if protocol.split == "temporal":
        verdict, remedy = verdict_of(count, "leak", "cut all users at one time")
        return Finding("training after test", verdict, count, len(time), text, remedy)
    text += f" (inherent to {protocol.split}; protocol.split temporal has none)"
    return Finding("training after test", "note" if count else "ok", count, len(time), text)


def order_in_ids(made: Sequences) -> Finding:
    """Targets whose id is the largest of the history plus one: ids handed out along the sequences (P5's leak)."""
    name, ids, test = "ids that encode order", numeric_ids(made.item_ids), made.test
    if ids is None:
        return Finding(name, "ok", 0, len(test), "test targets; the data's ids are not numbers, so they tell no order")
    asked = _has_history(made, test)
    next_to = ids[made.item[test.target]] == _largest(ids[made.item], made, test) + 1
    count, of = int((next_to & asked).sum()), int(asked.sum())
    chance = of / len(ids)
    # At least a twentieth: what neighbours in a catalogue (parts of a series) have in common is no leak.
    leak = count > max(0.05 * of, chance + 5 * math.sqrt(chance + 1))
    text = f"test targets whose id is the history's largest plus one ({chance:.1f} by chance)"
    remedy = "give ids that do not depend on the sequences, or never show ids to a model"
    return Finding(name, "leak" if leak else "ok", count, of, text, remedy if leak else "")


def numeric_ids(item_ids: Sequence[str]) -> Ints | None:
    """`[I]` the data's own numbers of its items, behind one word or none; None where its ids are of another kind.

    The place in the catalogue is no substitute: it is our numbering, often by first appearance, and no model sees it.

    Example:
        >>> [None if ids is None else ids.tolist() for ids in map(numeric_ids, (["7", "12"], ["B7", "B12"], ["B7", "Up"]))]
        [[7, 12], [7, 12], None]
    """
    parts = [re.fullmatch(r"(\D*)([0-9]{1,17})", item) for item in item_ids]
    numbers = [int(part[2]) for part in parts if part]
    one_word = len({part[1] for part in parts if part}) == 1
    return np.array(numbers, dtype=np.int64) if one_word and len(numbers) == len(parts) else None


def users_in_two_splits(made: Sequences, protocol: Protocol) -> Finding:
    """Test users who are also trained on or validate: a leak where the split is by user, else its nature."""
    trained = np.flatnonzero(made.train_end > made.start[:-1])
    test = np.unique(made.test.user)
    both = np.isin(test, trained) | np.isin(test, made.validation.user)
    text = "test users with events in another part"
    if protocol.split in ("k_fold", "user_cold_start"):
        verdict, remedy = verdict_of(int(both.sum()), "leak", "deal out users, not events, to the parts")
        return Finding("users in two splits", verdict, int(both.sum()), len(test), text, remedy)
    text += f" (as {protocol.split} means it)"
    return Finding("users in two splits", "note" if both.any() else "ok", int(both.sum()), len(test), text)


def positives_among_negatives(made: Sequences, protocol: Protocol) -> Finding:
    """Candidate lists that lack the true item, hold an item twice, or offer others of the user's own items."""
    chosen = np.sort(made.owner * len(made.item_ids) + made.item)
    kept_apart = protocol.exclude_seen and protocol.candidates != "published"
    count = of = 0
    for cases in (made.validation, made.test):
        if cases.candidates is None:
            continue
        of += len(cases)
        for begin in range(0, len(cases), _ROWS):
            rows = slice(begin, begin + _ROWS)
            offered, true = np.asarray(cases.candidates[rows]), made.item[cases.target[rows]][:, None]
            ordered = np.sort(offered, axis=1)
            wrong = ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any(axis=1)
            wrong |= (offered == true).sum(axis=1) != 1
            if kept_apart:
                pair = cases.user[rows][:, None] * len(made.item_ids) + offered
                mine = chosen[np.minimum(np.searchsorted(chosen, pair), len(chosen) - 1)] == pair
                wrong |= (mine & (offered != true) & (offered >= 0)).any(axis=1)
            count += int(wrong.sum())
    verdict, remedy = verdict_of(count, "leak", "draw negatives from items that the user never chose, each once")
    text = "lists without the true item exactly once, with repeats, or with another item of the user"
    return Finding("positives among negatives", verdict, count, of, text, remedy)


def position_of_the_positive(made: Sequences) -> Finding:
    """Whether the true item's place in the candidate lists is uniform (chi-square)."""
    name, text = "position of the positive", "test cases; no candidate lists, or of several lengths"
    candidates = made.test.candidates
    if candidates is None or (candidates < 0).any() or len(made.test) < 5 * candidates.shape[1]:
        return Finding(name, "ok", 0, len(made.test), text if candidates is None else "too few lists to test")
    places = np.argmax(candidates == made.item[made.test.target][:, None], axis=1)
    counts = np.bincount(places, minlength=candidates.shape[1])
    expected = len(places) / len(counts)
    p = chi_square_tail(float(((counts - expected) ** 2 / expected).sum()), len(counts) - 1)
    most = int(np.argmax(counts))
    text = f"true items at place {most + 1} of {len(counts)}, the most frequent ({expected:.1f} expected, p = {p:.2g})"
    remedy = "shuffle each candidate list by a recorded seed"
    return Finding(
        name, "leak" if p < ALARM else "ok", int(counts[most]), len(places), text, remedy if p < ALARM else ""
    )


def chi_square_tail(value: float, freedom: int) -> float:
    """Chance of a larger value (Wilson and Hilferty's cube-root approximation, doi:10.1073/pnas.17.12.684).

    Example:
        >>> round(chi_square_tail(30.14, 19), 2)
        0.05
    """
    spread = 2 / (9 * freedom)
    return 0.5 * math.erfc(((value / freedom) ** (1 / 3) - 1 + spread) / math.sqrt(2 * spread))


def tied_timestamps(made: Sequences) -> Finding:
    """Users whose last item depends on the rule for equal timestamps."""
    statistics = made.description["statistics"]
    count = round(statistics["users_with_ambiguous_last_item"] * statistics["users"])
    text = (
        f"users with an ambiguous last item ({statistics['users_with_ambiguous_last_item']:.1%};"
        f" {statistics['tied_interactions']:.1%} of interactions share a timestamp; rule: {made.description['timestamp_ties']})"
    )
    remedy = "report the rule (protocol.ties), and the result under another one"
    wrong = count > 0.01 * statistics["users"]
    verdict: Verdict = "warning" if wrong else "note" if count else "ok"
    return Finding("tied timestamps", verdict, count, statistics["users"], text, remedy if wrong else "")


def target_in_prompts(prompts: Sequence[str], shown: Sequence[Sequence[str]], targets: Sequence[str]) -> Finding:
    """Prompts that hold the target's title in another place than the titles they are meant to show.

    Example:
        >>> target_in_prompts(["Seen: Up. Next?", "Seen: Up. Hint: Heat"], [["Up"], ["Up"]], ["Heat", "Heat"]).count
        1
    """
    count = 0
    for prompt, titles, target in zip(prompts, shown, targets, strict=True):
        rest = prompt
        for title in sorted(titles, key=len, reverse=True):  # the longest first: "Alien" is inside "Aliens"
            rest = rest.replace(title, "\0", 1)
        if len(target.strip()) < 3 or target in titles:  # one or two letters stand everywhere
            continue
        count += re.search(rf"(?<!\w){re.escape(target)}(?!\w)", rest) is not None
    remedy = "remove the answer from the template's text"
    text = "rendered prompts that name the answer beside the titles they show"
    return Finding(
        "target title inside the prompt", "leak" if count else "ok", count, len(prompts), text, remedy if count else ""
    )


def label_collisions(
    answers: Sequence[str], titles: Sequence[str], encode: Callable[[str], list[int]] | None = None
) -> Finding:
    """Titles that are or begin with a label word, and labels that a tokenizer does not tell apart at once.

    Example:
        >>> label_collisions(["Yes", "No"], ["Yes Man", "Heat", "Nobody"]).count
        1
    """
    labels = [answer.strip().lower() for answer in answers]
    count = sum(
        any(re.match(rf"{re.escape(label)}(?!\w)", title.strip().lower()) is not None for label in labels)
        for title in titles
    )
    text = "titles that begin with a label: whoever looks for labels by their tokens takes them for answers"
    if encode is not None and answers:
        first = [encode(answer)[:1] for answer in answers]
        if len({tuple(tokens) for tokens in first}) < len(answers):
            return Finding(
                "label-token collisions",
                "leak",
                len(answers),
                len(answers),
                "labels that begin with one token",
                "choose other label words",
            )
    same = len(set(labels)) < len(labels)
    verdict: Verdict = "leak" if same else "warning" if count else "ok"
    remedy = "choose other label words, or rename the titles"
    return Finding("label-token collisions", verdict, count, len(titles), text, "" if verdict == "ok" else remedy)
