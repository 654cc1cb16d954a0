"""Preferences and intentions in words, taken from what the data holds by plain rules.

A preference is made of what a prompt may show anyhow: the events before the target, and the user's profile. An intention
is about the target itself. InstructRec (arXiv 2305.07001) defines a vague one by the target's review and a specific one
by the target's categories, both of the held-out event: those rules say so in their name, and which one was used is part
of the results' fingerprint.

# U users, I items, E events, H shown history
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import polars as pl

from datamodules.contract.errors import InputError
from datamodules.instructions.slates import Slate
from datamodules.items.base import clean_title
from datamodules.protocol.sequences import Sequences
from datamodules.tables.interactions import Interactions

PreferenceRule = Literal["annotation", "profile", "categories", "review"]
IntentionRule = Literal["annotation", "query", "target_review", "target_categories"]
NEEDS: dict[str, str] = {
    "annotation": "annotation",
    "profile": "profile",
    "categories": "categories",
    "review": "review",
    "query": "query",
    "target_review": "review",
    "target_categories": "categories",
}
"""The column that a rule reads."""
PREFERRED: dict[str, tuple[str, ...]] = {
    "preference": get_args(PreferenceRule),
    "vague": ("annotation", "query", "target_review"),
    "specific": ("annotation", "query", "target_categories"),
}
"""For each text the rules that make it, the first one that the data allows being the default."""
_CATEGORIES = 5  # named in a preference
_REVIEW = 200  # characters of a review in a preference


@dataclass(frozen=True)
class TextRules:
    """How preferences and intentions are put in words.

    Attributes:
        preference: `categories` most frequent in what the user liked, the latest `review`, the `profile`, or an
            `annotation`; null takes the first that the data allows.
        intention: the event's `query`, or as InstructRec defines them from the held-out event itself: `target_review`
            (vague), `target_categories` (specific); or an `annotation`. Null takes the first that the data allows.
        annotations: JSONL of texts that a language model wrote (`instructrec annotate`).
        limit: characters of an intention; the rest is cut.
    """

    preference: PreferenceRule | None = None
    intention: IntentionRule | None = None
    annotations: Path | None = None
    limit: int = 400

    def __post_init__(self) -> None:
        """Refuses a file that is not there and a limit that leaves nothing.

        Raises:
            InputError: either.
        """
        if self.annotations is not None and not self.annotations.is_file():
            raise InputError(f"data.texts.annotations: {self.annotations} does not exist")
        if self.limit < 1:
            raise InputError(f"data.texts.limit is {self.limit}, must be at least 1")


def choose_rule(kind: str, asked: str | None, columns: Sequence[str], owner: str) -> str:
    """The rule by which a text is made.

    Args:
        kind: `preference`, or of an intention `vague` or `specific`.
        asked: the rule that the user wants; None takes the first that the data allows.
        columns: what the data has.
        owner: the data set, for messages.

    Raises:
        InputError: the data lacks what the rule reads, or all that any rule reads.

    Example:
        >>> choose_rule("specific", None, ("title", "categories"), "Beauty")
        'target_categories'
        >>> choose_rule("vague", None, ("title", "rating"), "Beauty")
        Traceback (most recent call last):
            ...
        datamodules.contract.errors.InputError: a vague intention needs one of query, review, and Beauty has title, rating
    """
    what = "an explicit preference" if kind == "preference" else f"a {kind} intention"
    allowed = [rule for rule in PREFERRED[kind] if NEEDS[rule] in columns]
    if asked is not None and asked not in allowed:
        able = f"; it allows {', '.join(allowed)}" if allowed else ""
        raise InputError(
            f"{what} from {asked!r} needs {NEEDS.get(asked, asked)}, and {owner} has {', '.join(columns)}{able}"
        )
    if not allowed:
        needed = [NEEDS[rule] for rule in PREFERRED[kind] if rule != "annotation"]
        raise InputError(f"{what} needs one of {', '.join(needed)}, and {owner} has {', '.join(columns)}")
    return asked or allowed[0]


@dataclass(frozen=True)
class Explicit:
    """Texts of a data set, and the rules that make preferences and intentions of them.

    Attributes:
        preference_rule: see `PreferenceRule`; empty where no prompt tells a preference.
        intention_rule: see `IntentionRule`; empty likewise.
        separator: between categories, in the prompts' language.
        limit: characters of an intention.
        categories: `[I]` by item code.
        review: `[E]` by place; empty where there are none.
        query: `[E]` likewise.
        profile: `[U]` by user code, as text.
        notes: preference and intention that a model wrote, by user id and target's item id.
        sequences: all users' events.
        digest: sha256 of the notes; empty where there are none.
    """

    preference_rule: str
    intention_rule: str
    separator: str
    limit: int
    categories: tuple[tuple[str, ...], ...]
    review: tuple[str, ...]
    query: tuple[str, ...]
    profile: tuple[str, ...]
    notes: dict[tuple[str, str], dict[str, str]]
    sequences: Sequences
    digest: str = ""

    def preference(self, slate: Slate) -> str:
        """The user's taste in words; empty where nothing is known."""
        if slate.preference or not self.preference_rule:
            return slate.preference
        if self.preference_rule == "categories":
            return self._liked_categories(slate)
        if slate.begin < 0:
            return ""
        if self.preference_rule == "review":
            shown = range(slate.begin + len(slate.history) - 1, slate.begin - 1, -1)
            latest = next((self.review[place] for place in shown if self.review[place]), "")
            return shortened(latest, _REVIEW)
        if self.preference_rule == "profile":
            return self.profile[self._owner(slate.place)]
        return self._note(slate, "preference")

    def intention(self, slate: Slate, *, by_preference: bool = False) -> str:
        """What the user asks for in words; the preference, in a search by preference."""
        if by_preference:
            return slate.intention or self.preference(slate)
        if slate.intention or slate.place < 0 or not self.intention_rule:
            return slate.intention
        if self.intention_rule == "target_categories":
            made = self.separator.join(self.categories[slate.target])
        elif self.intention_rule == "annotation":
            made = self._note(slate, "intention")
        else:
            made = (self.query if self.intention_rule == "query" else self.review)[slate.place]
        return shortened(made, self.limit)

    def _liked_categories(self, slate: Slate) -> str:
        """The categories that occur most in what the user liked; in everything shown, where nothing was."""
        items = slate.history[slate.liked] if slate.liked.any() else slate.history
        count: dict[str, int] = {}
        for item in reversed(items.tolist()):  # of equal counts the latest first
            for name in self.categories[item]:
                count[name] = count.get(name, 0) + 1
        ranked = sorted(count, key=lambda name: -count[name])
        return self.separator.join(ranked[:_CATEGORIES])

    def _note(self, slate: Slate, kind: str) -> str:
        user = self.sequences.user_ids[self._owner(slate.place)]
        return self.notes.get((user, self.sequences.item_ids[slate.target]), {}).get(kind, "")

    def _owner(self, place: int) -> int:
        return int(np.searchsorted(self.sequences.start, place, side="right")) - 1


def shortened(text: str, limit: int) -> str:
    """At most `limit` characters of a text, cut between words where it has any.

    Example:
        >>> shortened("A quiet film about rain.", 15), shortened("一部关于雨的电影", 4)
        ('A quiet film', '一部关于')
    """
    text = clean_title(text).rstrip(" .。;；")
    if len(text) <= limit:
        return text
    cut = text[: limit + 1].rfind(" ")
    return text[: cut if cut > limit // 2 else limit].rstrip(" .,;，。；")


def explicit_texts(
    data: Interactions,
    sequences: Sequences,
    *,
    preference_rule: str,
    intention_rule: str,
    separator: str,
    limit: int,
    notes: dict[tuple[str, str], dict[str, str]] | None = None,
) -> Explicit:
    """Brings a data set's texts into the order of its sequences.

    Args:
        data: the typed tables; interactions with a column `row`, their number.
        sequences: made of them.
        preference_rule: of `PreferenceRule`, or empty.
        intention_rule: of `IntentionRule`, or empty.
        separator: between categories.
        limit: characters of an intention.
        notes: what a model wrote.

    Raises:
        InputError: the tables lack a column that the data set promised.
    """
    columns = {NEEDS[rule] for rule in (preference_rule, intention_rule) if rule}
    for name, table in (("review", data.interactions), ("query", data.interactions), ("categories", data.items)):
        if name in columns and name not in table.columns:
            raise InputError(
                f"the data's tables have no column {name!r}; choose other rules by data.texts.preference and .intention"
            )
    if "profile" in columns and data.users is None:
        raise InputError("the data has no table of users' profiles; choose another rule by data.texts.preference")
    events = {
        name: tuple(data.interactions[name].gather(pl.Series(sequences.row)).fill_null("").to_list())
        if name in columns
        else ()
        for name in ("review", "query")
    }
    listed = (
        dict(zip(data.items["item"], data.items["categories"].to_list(), strict=True))
        if "categories" in columns
        else {}
    )
    digest = hashlib.sha256(json.dumps(sorted((notes or {}).items())).encode()).hexdigest() if notes else ""
    return Explicit(
        preference_rule=preference_rule,
        intention_rule=intention_rule,
        separator=separator,
        limit=limit,
        categories=tuple(tuple(filter(None, map(clean_title, listed.get(i) or ()))) for i in sequences.item_ids),
        review=events["review"],
        query=events["query"],
        profile=_profiles(data, sequences, separator) if "profile" in columns else (),
        notes=notes or {},
        sequences=sequences,
        digest=digest,
    )


def _profiles(data: Interactions, sequences: Sequences, separator: str) -> tuple[str, ...]:
    """`[U]` every column of a user's profile with its name; what is not known is left out."""
    if data.users is None:
        return ()
    by_user = {row.pop("user"): row for row in data.users.to_dicts()}
    told = [by_user.get(user, {}) for user in sequences.user_ids]
    return tuple(
        separator.join(f"{k} {clean_title(str(v))}" for k, v in row.items() if v not in (None, "")) for row in told
    )


def read_notes(path: Path) -> dict[tuple[str, str], dict[str, str]]:
    """Texts that a model wrote, by user id and the target's item id.

    Args:
        path: JSONL of `{"user": ..., "item": ..., "preference": ..., "intention": ...}`, as `instructrec annotate` writes.

    Raises:
        InputError: a line is malformed (named by number), or the file cannot be read.
    """
    notes: dict[tuple[str, str], dict[str, str]] = {}
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            key = (str(row["user"]), str(row["item"]))
            texts = {kind: str(row[kind]) for kind in ("preference", "intention") if row.get(kind)}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(
                f'{path}:{number}: needs {{"user": ..., "item": ..., "preference": ...}}: {error}'
            ) from error
        notes.setdefault(key, {}).update(texts)
    return notes
