"""Any data set in the form of RecBole's atomic files."""

from __future__ import annotations

from typing import Any, ClassVar

from datamodules.atomic_sequences import atomic_fields, latest_events, read_candidates, read_events
from datamodules.base import InstructionDataModule
from datamodules.cleaning import Untitled, assemble, first_of_each, require
from datamodules.interactions import Interactions, read_atomic_file
from datamodules.own_files import optional_file, own_file
from datamodules.sources import InputError
from datamodules.wording import GENERIC, worded

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
