"""What a run's scores are about: popularity, features, history and groups, kept beside the scores of each case.

So that coverage, novelty, diversity, segments and group gaps follow from the run's files, without its data or its model.

# U test cases, I items, F features of all items
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from datamodules.base import InstructionDataModule

GROUPS = 8
"""Profile columns with more values are no grouping, and are not kept; numbers are cut into quarters first."""
_WORD = re.compile(r"[一-鿿]|[^\W_]+")


def fact_arrays(data: InstructionDataModule, case: NDArray[np.int64], listed: NDArray[np.int64]) -> dict[str, Any]:
    """The arrays that `scores.npz` holds beside the scores.

    Args:
        data: after a test.
        case: `[U]` number of each test case, in the order of the scores.
        listed: item codes that any list holds; other items' features are not kept.

    Returns:
        `popularity` `[I]` training events of each item; `history` `[U]` events before the case's; `target` `[U]` the
        item it asks about; `feature_start` `[I + 1]` and `feature`, the items' categories or, where there are none,
        their titles' words; `group.<column>` `[U]` of the users' profiles.
    """
    sequences, cases = data.sequences, data.cases("test")
    items, users = data.frozen.about
    user = cases.user[case]
    features = _features(items, sequences.item_ids, sequences.titles)
    start, feature = feature_codes(features, np.unique(listed))
    return {
        "popularity": np.bincount(sequences.item[sequences.trained], minlength=len(sequences.item_ids)).astype(
            np.int32
        ),
        "history": (cases.shown[case] - sequences.start[user]).astype(np.int32),
        "target": sequences.item[cases.target[case]].astype(np.int32),
        "feature_start": start,
        "feature": feature,
    } | {f"group.{name}": column for name, column in _groups(users, [sequences.user_ids[u] for u in user]).items()}


def feature_codes(features: Sequence[Iterable[str]], kept: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Distinct features of each item as numbers, in rows one behind another.

    Args:
        features: `[I]` names of each item's features.
        kept: codes of the items to keep; the others get an empty row.

    Returns:
        `[I + 1]` where each item's row begins, and the numbers.

    >>> start, feature = feature_codes([["war", "drama"], ["comedy"], ["drama", "drama"]], np.array([0, 2]))
    >>> start.tolist(), feature.tolist()
    ([0, 2, 2, 3], [0, 1, 0])
    """
    wanted = np.zeros(len(features), dtype=bool)
    wanted[kept] = True
    rows = [sorted(set(names)) if keep else [] for names, keep in zip(features, wanted, strict=True)]
    codes = {name: code for code, name in enumerate(sorted({name for row in rows for name in row}))}
    flat = [codes[name] for row in rows for name in row]
    start = np.concatenate(([0], np.cumsum([len(row) for row in rows], dtype=np.int64)))
    return start.astype(np.int32), np.array(flat, dtype=np.int32)


def title_words(title: str) -> list[str]:
    """The words of a title; a Chinese character is a word.

    >>> title_words("The Godfather, Part II"), title_words("红楼梦 (1987)")
    (['the', 'godfather', 'part', 'ii'], ['红', '楼', '梦', '1987'])
    """
    return _WORD.findall(title.lower())


def grouping(values: pl.Series) -> NDArray[np.str_] | None:
    """A profile column as names of groups, "" where it says nothing; None where it makes no few groups.

    >>> grouping(pl.Series(["F", "M", None, "F"])).tolist()
    ['F', 'M', '', 'F']
    >>> grouping(pl.Series([str(age) for age in range(20, 60)])).tolist()[::13]
    ['20 to 29', '30 to 39', '40 to 49', '50 to 59']
    """
    number = values.cast(pl.Float64, strict=False)
    text = values.cast(pl.String, strict=False).fill_null("")
    names = text.filter(text != "").unique()
    if len(names) > GROUPS and number.is_not_null().sum() == (text != "").sum():
        text = _quarters(number.to_numpy())
        names = text.filter(text != "").unique()
    return text.to_numpy().astype(np.str_) if 2 <= len(names) <= GROUPS else None


def _quarters(number: NDArray[np.float64]) -> pl.Series:
    known = ~np.isnan(number)
    edges = np.unique(np.quantile(number[known], (0.25, 0.5, 0.75), method="lower"))
    quarters = np.searchsorted(edges, number, side="left")
    names = np.full(len(number), "", dtype=object)
    for quarter in np.unique(quarters[known]):
        inside = known & (quarters == quarter)
        names[inside] = f"{number[inside].min():g} to {number[inside].max():g}"
    return pl.Series(names.tolist(), dtype=pl.String)


def _features(items: pl.DataFrame, item_ids: list[str], titles: list[str]) -> list[list[str]]:
    if "categories" in items.columns:
        categories = dict(zip(items["item"], items["categories"].fill_null([]).to_list(), strict=True))
        listed = [[name for name in categories.get(item) or [] if name] for item in item_ids]
        if any(listed):
            return listed
    return [title_words(title) for title in titles]


def _groups(users: pl.DataFrame | None, ids: list[str]) -> dict[str, NDArray[np.str_]]:
    if users is None:
        return {}
    rows = pl.DataFrame({"user": ids}).join(users, on="user", how="left", maintain_order="left")
    plain = [name for name in rows.columns if name != "user" and not rows.schema[name].is_nested()]
    made = {name: grouping(rows[name]) for name in plain}
    return {name: groups for name, groups in made.items() if groups is not None}
