"""New users to recommend to: a JSONL file of histories, read and checked against the catalogue."""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.contract.errors import InputError
from datamodules.instructions.slates import Slate

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Request:
    """A user's history and what to rank for them.

    Attributes:
        user: id of the user, as given.
        history: item codes, oldest first.
        candidates: item codes to rank.
        whole: whether that is the catalogue without the history.
        query: what the user asks for, in words.
        preference: what the user likes, in words.
    """

    user: str
    history: Ints
    candidates: Ints
    whole: bool = False
    query: str = ""
    preference: str = ""

    def slate(self, number: int, limit: int) -> Slate:
        """The request as a case without a known answer, with at most `limit` items of its history."""
        history = self.history[-limit:]
        unknown = np.zeros(len(history), dtype=bool)
        made = Slate(number, self.user, history, unknown, self.candidates, -1, False, whole=self.whole)
        return replace(made, intention=self.query, preference=self.preference)


def read_requests(path: Path, item_ids: list[str], titles: list[str]) -> list[Request]:
    """Reads one JSON object a line: `{"user": "u1", "history": ["Fargo", "302"], "candidates": [...]}`.

    Items are named by id or by exact title; ids win. `user` defaults to the line number, `candidates` to the whole
    catalogue without the history. Texts `query` and `preference` are told where the instruction has a place for them;
    with a query the history may be empty.

    Args:
        path: the file, UTF-8.
        item_ids: `[I]` catalogue ids.
        titles: `[I]` catalogue titles.

    Raises:
        InputError: the file or a line cannot be read, an item is unknown (the nearest title is offered), a candidate
            is named twice, or a user has no history or no candidates.
    """
    try:
        lines = path.read_bytes().decode("utf-8-sig").split("\n")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise InputError(f"{path}:{line}: not UTF-8") from error
    codes = {title: code for code, title in reversed(list(enumerate(titles)))} | {i: c for c, i in enumerate(item_ids)}
    requests = [
        _request(line, f"{path}:{number}", str(number), codes, len(item_ids))
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    if not requests:
        raise InputError(f"{path} holds no users")
    return requests


def _request(line: str, where: str, default: str, codes: dict[str, int], catalogue: int) -> Request:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not JSON ({error})") from error
    if not isinstance(row, dict) or not isinstance(row.get("history"), list):
        raise InputError(f'{where}: must be an object with a list "history"')
    keys = ("user", "history", "candidates", "query", "preference")
    unknown = set(row) - set(keys)
    if unknown:
        raise InputError(f"{where}: unknown key {sorted(unknown)[0][:80]!r}; there are {', '.join(keys)}")
    texts = {key: row.get(key) or "" for key in ("query", "preference")}
    for key, text in texts.items():
        if not isinstance(text, str):
            raise InputError(f"{where}: {key} must be a text")
    history = _codes(row["history"], "history", where, codes)
    whole = row.get("candidates") is None
    if whole:
        keep = np.ones(catalogue, dtype=bool)
        keep[history] = False
        candidates = np.flatnonzero(keep)
    else:
        candidates = _codes(row["candidates"], "candidates", where, codes)
        _refuse_repeats(row["candidates"], candidates, where)
    unasked = len(history) == 0 and not texts["query"]
    if unasked or len(candidates) == 0:
        raise InputError(f"{where}: {'history' if unasked else 'candidates'} is empty")
    user = str(row.get("user", default))
    return Request(user=user, history=history, candidates=candidates, whole=whole, **texts)


def _refuse_repeats(names: list[Any], codes: Ints, where: str) -> None:
    before: dict[int, Any] = {}
    for name, code in zip(names, codes.tolist(), strict=True):
        if code in before:
            raise InputError(
                f"{where}: candidates name {str(before[code])[:80]!r} and again {str(name)[:80]!r}, which is the same"
                " item; where items share a title, name them by id"
            )
        before[code] = name


def _codes(items: Any, key: str, where: str, codes: dict[str, int]) -> Ints:
    if not isinstance(items, list):
        raise InputError(f"{where}: {key} must be a list")
    found = []
    for item in items:
        if str(item) not in codes:
            near = difflib.get_close_matches(str(item)[:80], codes, n=1, cutoff=0)
            raise InputError(
                f"{where}: {key} names {str(item)[:80]!r}, not in the catalogue; the nearest is {near[0]!r}"
            )
        found.append(codes[str(item)])
    return np.array(found, dtype=np.int64)
