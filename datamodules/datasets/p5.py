"""The sequence files of P5 and its successors."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
import polars as pl

from datamodules.base import InstructionDataModule
from datamodules.contract.errors import InputError
from datamodules.sources.fetch import own_file
from datamodules.tables.cleaning import Untitled, assemble, require
from datamodules.tables.delimited import read_delimited
from datamodules.tables.interactions import Interactions

# Numbers in the place of item ids, as P5 and its successors hand them out, with and without the leak.

Numbering = Literal["own", "sequential", "sequential_training", "random"]
_HELD_OUT = 2  # events at each user's end, under leave-one-out


def numbered(
    events: pl.DataFrame, items: pl.DataFrame, numbering: Numbering, seed: int = 0
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Items under numbers from 1, with `item 17` for a title, in the order of their numbers.

    Args:
        events: `user` and `item`, each user's in their order in time.
        items: `item` and `title`, further columns.
        numbering: `sequential` gives numbers along the users' whole sequences, as P5 does, so that what is held out
            often has the number after the largest in its history; `sequential_training` gives them along what training
            sees, and to the rest in random order; `random` gives them in random order.
        seed: of the random order.

    Returns:
        The events and the items under their numbers.

    Example:
        >>> events = pl.DataFrame({"user": ["u"] * 4, "item": ["d", "a", "c", "b"]})
        >>> items = pl.DataFrame({"item": ["a", "b", "c", "d"], "title": ["A", "B", "C", "D"]})
        >>> numbered(events, items, "sequential")[0]["item"].to_list()
        ['1', '2', '3', '4']
    """
    seen = events
    if numbering == "sequential_training":
        seen = events.filter(pl.int_range(pl.len(), 0, -1).over("user") > _HELD_OUT)
    order = [] if numbering == "random" else seen["item"].unique(maintain_order=True).to_list()
    known = set(order)
    rest = sorted(item for item in items["item"].to_list() if item not in known)
    order += [rest[place] for place in np.random.default_rng(seed).permutation(len(rest))]
    number = pl.DataFrame({"item": order, "number": range(1, len(order) + 1)})
    named = items.join(number, on="item", how="inner").sort("number")
    named = named.with_columns(item=pl.col("number").cast(pl.String), title=pl.format("item {}", "number"))
    code = events.join(number, on="item", how="left", maintain_order="left")
    return code.with_columns(item=pl.col("number").cast(pl.String)).drop("number"), named.drop("number")


_ADDRESS = "https://github.com/agiresearch/IDGenRec (rec_datasets/<name>)"


class P5Sequences(InstructionDataModule):
    """The sequences of P5, S3-Rec, OpenP5 and IDGenRec: one line `user item item ...` for each user, oldest first.

    Source: https://github.com/agiresearch/IDGenRec (rec_datasets), made from the Amazon 2014 5-core: Beauty has 22,363
    users, 12,101 items and 198,502 interactions, as P5 reports. Licence: none stated; research use with citation. Citation:
    Geng et al. 2022, arXiv 2203.13366. There are no timestamps and no ratings: the order of the line is the order in time.
    Ids are the shop's own, so that no number tells the order (P5's own numbers do). Users without any item are counted.

    One real title, as IDGenRec shortens it: "natural nail strengthener treatment opi".

    Args:
        folder: below `INSTRUCTREC_DATA`.
        sequences_file: file of the sequences.
        titles_file: file with one line `item title` for each item.
        untitled: `item_id` shows the id of items without a title, which keeps the published counts; `drop` leaves them
            out with their events; `refuse` stops.
        numbering: `own` keeps the shop's ids and titles; `sequential` (P5's, which leaks), `sequential_training` and
            `random` put numbers in their place, see `datamodules.datasets.p5`.
        options: as every data set, see `InstructionDataModule`.
    """

    words: ClassVar[dict[str, dict[str, str]]] = {
        "en": {"noun": "product", "nouns": "products", "consumed": "bought"},
        "zh": {"noun": "商品", "nouns": "商品", "consumed": "买过"},
    }
    provides: ClassVar[tuple[str, ...]] = ("title",)

    def __init__(
        self,
        folder: str = "amazon_beauty_p5",
        sequences_file: str = "user_sequence.txt",
        titles_file: str = "item_generative_indexing_phase_0.txt",
        untitled: Untitled = "item_id",
        numbering: Numbering = "own",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.folder, self.sequences_file, self.titles_file = folder, sequences_file, titles_file
        self.untitled, self.numbering = untitled, numbering

    @property
    def description(self) -> dict[str, str]:
        """Names the folder too, and the numbering where it is not the shop's."""
        told = {} if self.numbering == "own" else {"numbering": self.numbering}
        return {**super().description, "dataset": f"{type(self).__name__} {self.folder}", **told}

    def read(self) -> Interactions:
        """Reads both files."""
        lines, texts = (
            own_file(self.folder, self.data_dir, (name,), _ADDRESS) for name in (self.sequences_file, self.titles_file)
        )
        users = require(read_delimited(lines, {"text": "text"}, separator="\x1e", names=("text",)), ("text",), lines)
        users = users.with_columns(pl.col("text").str.strip_chars().str.extract_all(r"\S+").alias("item"))
        users = users.select(pl.col("item").list.first().alias("user"), pl.col("item").list.slice(1), "line")
        twice = users.filter(pl.col("user").is_duplicated())
        if len(twice):
            raise InputError(f"{lines}:{twice['line'][1]}: user {twice['user'][1]!r} stands more than once")
        filled = users.filter(pl.col("item").list.len() > 0)
        items = require(read_delimited(texts, {"text": "text"}, separator="\x1e", names=("text",)), ("text",), texts)
        halves = pl.col("text").str.extract_groups(r"^(?P<item>\S+)\s*(?P<title>.*)$")
        items = items.select(halves.alias("halves"), "line").unnest("halves")
        repairs = {"users without any event left out": len(users) - len(filled)}
        events, told = filled.explode("item"), dict[str, Any]()
        if self.numbering != "own":
            events, items = numbered(
                events, items.filter(pl.col("item").is_in(events["item"].implode())), self.numbering
            )
            told["numbering"] = self.numbering
        return assemble(events, items, (lines, texts), untitled=self.untitled, repairs=repairs, **told)
