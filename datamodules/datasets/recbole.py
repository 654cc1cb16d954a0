"""The forms of events in RecBole's atomic files: single events, published splits of them, and sequences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import polars as pl

from datamodules.base import InstructionDataModule
from datamodules.contract.errors import InputError
from datamodules.datasets.tabular import GENERIC, worded
from datamodules.sources.fetch import optional_file, own_file
from datamodules.tables.cleaning import Untitled, assemble, first_of_each, require
from datamodules.tables.delimited import header_of, read_atomic_file, read_delimited
from datamodules.tables.interactions import Interactions

_SPLITS = {"train": "train", "valid": "validation", "test": "test"}


def atomic_fields(path: Path) -> list[str]:
    r"""Names of the fields, without their types.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a.inter"
    >>> _ = path.write_text("user_id:token\titem_id:token\n")
    >>> atomic_fields(path)
    ['user_id', 'item_id']
    """
    return [each.split(":")[0] for each in header_of(path, path, "\t", quoted=False)]


def read_events(files: Sequence[Path], fields: Mapping[str, str]) -> pl.DataFrame:
    r"""Reads events from one file of all, or from those of a published split, or of one's sequences.

    Args:
        files: one file, or `.train.inter` (absent for sequences), `.valid.inter`, `.test.inter`.
        fields: the fields' names and ours, `{"user_id": "user"}`; only those of `user` and `item` must be there.

    Returns:
        `user`, `item`, what else is there, `line`, and for a split `split`.

    Raises:
        InputError: a file is malformed, or the parts contradict one another.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a.inter"
    >>> _ = path.write_text("user_id:token\titem_id:token\n7\t4\n")
    >>> read_events([path], {"user_id": "user", "item_id": "item"}).rows()
    [('7', '4', 2)]
    """
    listed = next(f"{name}_list" for name, ours in fields.items() if ours == "item")
    if len(files) > 1 and listed in atomic_fields(files[-1]):
        return _from_sequences(files[-2], files[-1], dict(fields), listed)
    tables = []
    for path in files:
        there = atomic_fields(path)
        wanted = {name: ours for name, ours in fields.items() if name in there or ours in ("user", "item")}
        table = require(read_atomic_file(path, wanted, lines=True), ("user", "item"), path)
        if len(files) > 1:
            table = table.with_columns(split=pl.lit(_SPLITS[path.name.split(".")[-2]]))
        tables.append(table)
    return pl.concat(tables)


def _from_sequences(valid: Path, test: Path, fields: dict[str, str], listed: str) -> pl.DataFrame:
    """A user's test history and target are the whole sequence; the validation event is the last of that history."""
    wanted = {name: ours for name, ours in fields.items() if ours in ("user", "item")} | {listed: "history"}
    whole, before = (
        require(read_atomic_file(path, wanted, lines=True), ("user", "item"), path) for path in (test, valid)
    )
    for path, table in ((test, whole), (valid, before)):
        twice = table.filter(pl.col("user").is_duplicated())
        if len(twice):
            raise InputError(f"{path}:{twice['line'][1]}: user {twice['user'][1]!r} stands more than once")
    whole = whole.with_columns(pl.col("history").fill_null("").str.extract_all(r"\S+"))
    joined = before.join(whole.select("user", pl.col("history").list.last().alias("seen")), on="user", how="left")
    wrong = joined.filter(pl.col("item").ne_missing(pl.col("seen")))
    if len(wrong):
        raise InputError(
            f"{valid}:{wrong['line'][0]}: user {wrong['user'][0]!r} has another item here than before the last in {test}"
        )
    past = whole.select(
        "user", pl.col("history").alias("item"), "line", last=False, order=pl.int_range(pl.len())
    ).explode("item")
    final = whole.select("user", "item", "line", last=True, order=pl.int_range(pl.len()))
    events = pl.concat([past.drop_nulls("item"), final]).sort("order", "last", maintain_order=True)
    back = pl.int_range(pl.len(), 0, -1).over("user")
    validated = pl.col("user").is_in(before["user"].implode()) & (back == 2)
    split = pl.when("last").then(pl.lit("test")).when(validated).then(pl.lit("validation")).otherwise(pl.lit("train"))
    return events.select("user", "item", "line", split=split)


def latest_events(events: pl.DataFrame, count: int) -> tuple[pl.DataFrame, dict[str, int]]:
    """Keeps each user's latest events, and says how many it left out.

    >>> latest_events(pl.DataFrame({"user": ["u", "v", "u"], "item": ["a", "b", "c"]}), 1)[0]["item"].to_list()
    ['b', 'c']
    """
    ordered = events.sort("timestamp", maintain_order=True) if "timestamp" in events.columns else events
    kept = ordered.filter(pl.int_range(pl.len(), 0, -1).over("user") <= count)
    return kept, {f"events before a user's latest {count} left out": len(events) - len(kept)}


def read_candidates(path: Path, events: pl.DataFrame) -> pl.DataFrame:
    r"""Adds `candidates` to users' test events: published lists, which need not hold the event's own item.

    Raises:
        InputError: a line is malformed, names a user twice or without a test event, or there is no published split.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a.random"
    >>> _ = path.write_text("u\ta b\n")
    >>> events = pl.DataFrame({"user": ["u"], "item": ["a"], "split": ["test"]})
    >>> read_candidates(path, events)["candidates"].to_list()
    [['a', 'b']]
    """
    if "split" not in events.columns:
        raise InputError(f"{path}: candidates need a published split, and the events have none")
    lists = read_delimited(path, {"user": "user", "items": "candidates"}, separator="\t", names=("user", "items"))
    lists = require(lists, ("user", "candidates"), path)
    tested = events.filter(pl.col("split") == "test")["user"]
    wrong = lists.filter(pl.col("user").is_duplicated() | ~pl.col("user").is_in(tested.implode()))
    if len(wrong):
        raise InputError(f"{path}:{wrong['line'][0]}: user {wrong['user'][0]!r} stands twice or has no test event")
    lists = lists.select("user", pl.col("candidates").str.split(" "), split=pl.lit("test"))
    return events.join(lists, on=["user", "split"], how="left", maintain_order="left")


_ADDRESS = "https://recbole.io/dataset_list.html"
_TITLES = ("title", "movie_title", "item_name", "name", "game_name", "book_title", "app_name")


class RecBoleFiles(InstructionDataModule):
    """A folder of RecBole atomic files, `<stem>.inter` and `<stem>.item`, or the published split of three `.inter` files.

    Source: https://recbole.io/dataset_list.html lists more than forty. Licence: each its own. Citation: Zhao et al.
    2021, doi:10.1145/3459637.3482016. The Games of InstructRec (arXiv 2305.07001) and LLMRank (arXiv 2305.08845) are read
    so too: 50,546 users, 16,859 items, 440,264 interactions, and 410,907 with `latest: 20`. There the three files hold
    sequences (`item_id_list`), which become events once, with the published split; without timestamps the file's order
    is the order in time.

    One real title of Games: "Fire Emblem: The Sacred Stones".

    Args:
        folder: below `INSTRUCTREC_DATA`.
        stem: of the file names; null means the folder's name.
        fields: the files' names of `user`, `item`, `rating`, `timestamp` (seconds) where they differ from RecBole's usual
            `user_id`, `item_id`, `rating`, `timestamp`; the last two may be absent.
        title_field: of the items; null takes the first of the usual names.
        candidates_file: published candidate lists of the test events, lines of `user<TAB>item item ...`.
        latest: keep each user's latest events only, the test event among them; null keeps all.
        untitled: `drop` leaves items without a title out with their events, `item_id` shows the id, `refuse` stops.
        wording: the domain's words, such as `{noun: game, nouns: games, consumed: bought}`.
        options: as every data set, see `InstructionDataModule`.
    """

    words: ClassVar[dict[str, dict[str, str]]] = GENERIC

    def __init__(
        self,
        folder: str = "ml-1m",
        stem: str | None = None,
        fields: dict[str, str] | None = None,
        title_field: str | None = None,
        candidates_file: str | None = None,
        latest: int | None = None,
        untitled: Untitled = "refuse",
        wording: dict[str, str] | None = None,
        **options: Any,
    ) -> None:
        self.words = worded(wording)  # type: ignore[misc]  # one class of many domains
        super().__init__(**options)
        if latest is not None and latest < 1:
            raise InputError(f"data.latest is {latest}, must be at least 1")
        self.folder, self.stem, self.untitled, self.latest = folder, stem or folder, untitled, latest
        self.title_field, self.candidates_file = title_field, candidates_file
        usual = {"user": "user_id", "item": "item_id", "rating": "rating", "timestamp": "timestamp"}
        for ours in set(fields or {}) - set(usual):
            raise InputError(f"data.fields has the key {ours!r}; the keys are {', '.join(usual)}")
        self.fields = {name: ours for ours, name in (usual | (fields or {})).items()}
        self.item_field = (usual | (fields or {}))["item"]

    @property
    def description(self) -> dict[str, str]:
        """Names the files too."""
        return {**super().description, "dataset": f"{type(self).__name__} {self.stem}"}

    def read(self) -> Interactions:
        """Reads the events, whichever form they have, and the items."""
        stem, where, repairs = self.stem, (self.folder, self.data_dir), dict[str, int]()
        whole = optional_file(*where, (f"{stem}.inter",))
        parts = [whole] if whole else [own_file(*where, (f"{stem}.{p}.inter",), _ADDRESS) for p in ("valid", "test")]
        first = None if whole else optional_file(*where, (f"{stem}.train.inter",))
        files = [first, *parts] if first else parts
        events = read_events(files, self.fields)
        if self.latest:
            events, repairs = latest_events(events, self.latest)
        path = own_file(*where, (f"{stem}.item",), _ADDRESS)
        there = atomic_fields(path)
        title = self.title_field or next((name for name in _TITLES if name in there), "title")
        items = read_atomic_file(path, {self.item_field: "item", title: "title"}, lines=True)
        items = first_of_each(require(items, ("item",), path), ("item",), "items", repairs)
        files = [files[-1], path, *files[:-1]]
        if self.candidates_file:
            lists = own_file(*where, (self.candidates_file,), _ADDRESS)
            events = read_candidates(lists, events)
            files.append(lists)
        options: dict[str, Any] = {"latest": self.latest, "fields": self.fields, "title": title}
        return assemble(events, items, files, untitled=self.untitled, repairs=repairs, **options)
