"""The rules of an evaluation as plain settings, and the refusal of impossible ones before anything is read."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from datamodules.contract.errors import InputError

Ties = Literal["file_order", "reversed_file_order", "item_id", "shuffle"]
SplitRule = Literal["leave_one_out", "temporal", "ratio", "k_fold", "published", "user_cold_start", "item_cold_start"]
CandidateRule = Literal["uniform", "popularity", "bm25", "two_tower", "published", "full"]

FIRST_SETTINGS = (
    "ties",
    "candidates",
    "negatives",
    "exclude_seen",
    "history",
    "like_threshold",
    "test_users",
    "validation_users",
    "fit_on_validation",
    "seed",
)
"""Settings of the first release: always part of the fingerprint; later ones only where they are not the default."""


@dataclass(frozen=True)
class Protocol:
    """The rules of an evaluation. Two results may share a table only if these and the data are equal.

    Attributes:
        ties: order of a user's events with equal timestamps: as in the file, against it, by numeric item id
            (text ids after numbers), or shuffled by `seed`. On ML-100K this alone moves popularity's HR@10 by 1.7x.
        candidates: what the true item is ranked among: `full` takes the catalogue; `uniform` draws `negatives` items
            alike, `popularity` by training counts; `bm25` and `two_tower` take the items nearest to the history's
            titles (by words, by a sentence encoder); `published` takes the lists of the data's `candidates` column.
        negatives: items beside the true one; unused under `full` and `published`.
        exclude_seen: never offer an item of the user's history as a candidate.
        history: a prompt shows at most this many of the user's latest items before the target.
        like_threshold: a rating of at least this counts as liked.
        test_users: test on this many users, drawn by `seed`; null takes all.
        validation_users: validate on this many; of one seed the smaller sample is inside the larger.
        fit_on_validation: train on the validation items too; there is then no validation.
        seed: of candidates, candidate order, samples, shuffled ties, folds. Independent of the training seed.
        split: `leave_one_out` (a user's last event tests, the one before validates); `temporal` (one cut in time for
            everybody); `ratio` (each user's last shares); `k_fold` (users in `folds` parts, one tests); `published`
            (the data's `split` column); `user_cold_start`, `item_cold_start` (users or items that training never saw).
        validation_share: of all events (`temporal`), each user's events (`ratio`), users or items (cold start).
        test_share: likewise.
        folds: number of parts under `k_fold`.
        fold: which part tests, from 0; the next one validates.
        targets: `next` evaluates a user's first event of a split, `all` every one. Under `leave_one_out`, `k_fold` and
            `user_cold_start` there is one; `published` evaluates all that are published.
        shots: train on this many examples only, stratified by like, smaller samples inside larger; null takes all.
        train_share: train on this share of the examples only, drawn as `shots` are; null takes all.
        history_order: `time`; `shuffled` is the control whose training order and histories tell nothing of time.
        user_core: before the split, users with fewer events are removed, to a fixpoint with `item_core`.
        item_core: likewise items.
        min_rating: events rated lower are removed first; null keeps all.
        also: further rules of `candidates` that the same model is tested under in the same pass, each with a
            fingerprint, a record and a table of its own, as of a run with that rule. Validation uses `candidates`.
    """

    ties: Ties = "file_order"
    candidates: CandidateRule = "uniform"
    negatives: int = 19
    exclude_seen: bool = True
    history: int = 10
    like_threshold: float = 4.0
    test_users: int | None = None
    validation_users: int | None = None
    fit_on_validation: bool = False
    seed: int = 42
    split: SplitRule = "leave_one_out"
    validation_share: float = 0.1
    test_share: float = 0.1
    folds: int = 5
    fold: int = 0
    targets: Literal["next", "all"] = "next"
    shots: int | None = None
    history_order: Literal["time", "shuffled"] = "time"
    user_core: int = 1
    item_core: int = 1
    min_rating: float | None = None
    train_share: float | None = None
    also: tuple[CandidateRule, ...] = ()

    def __post_init__(self) -> None:
        """Refuses impossible rules.

        Raises:
            InputError: a count is below one, a share is not inside (0, 1), two say how much to train on, a fold does not
                exist, the seed is negative, a further rule stands twice or is `published`.
        """
        for name in ("negatives", "history", "test_users", "validation_users", "shots", "user_core", "item_core"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"protocol.{name} is {value}, must be at least 1")
        if self.seed < 0:
            raise InputError(f"protocol.seed is {self.seed}, must be at least 0")
        for name in ("validation_share", "test_share"):
            if not 0 < getattr(self, name) < 1:
                raise InputError(f"protocol.{name} is {getattr(self, name)}, must be between 0 and 1")
        if self.train_share is not None and not 0 < self.train_share <= 1:
            raise InputError(f"protocol.train_share is {self.train_share}, must be above 0, to 1")
        if self.train_share is not None and self.shots is not None:
            raise InputError("protocol.shots and protocol.train_share both say how much to train on; keep one")
        if self.validation_share + self.test_share >= 1:
            raise InputError(
                f"protocol.validation_share {self.validation_share} and protocol.test_share {self.test_share} leave"
                " nothing to train on; they must add up to less than 1"
            )
        if self.folds < 3:
            raise InputError(
                f"protocol.folds is {self.folds}, must be at least 3: one tests, one validates, one trains"
            )
        if not 0 <= self.fold < self.folds:
            raise InputError(f"protocol.fold is {self.fold}, must be 0 to {self.folds - 1} (protocol.folds less one)")
        if len({self.candidates, "published", *self.also}) < len(self.also) + 1 + (self.candidates != "published"):
            raise InputError(
                f"protocol.also is [{', '.join(self.also)}], must name other rules than protocol.candidates"
                f" {self.candidates}, each once, and not published: its lists come with the data"
            )

    @property
    def sampled(self) -> bool:
        """Whether candidates are a list beside the true item, and not the catalogue or a published list."""
        return self.candidates not in ("full", "published")

    def settings(self) -> dict[str, Any]:
        """What the fingerprint hashes: a setting added later counts only where it is not the default, and `also` never.

        Example:
            >>> "split" in Protocol().settings(), Protocol(split="ratio").settings()["split"]
            (False, 'ratio')
        """
        defaults = {field.name: field.default for field in fields(self)}
        return {
            name: value
            for name, value in asdict(self).items()
            if name in FIRST_SETTINGS or (value != defaults[name] and name != "also")
        }
