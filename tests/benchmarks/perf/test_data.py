"""`perf data`: both sides prepare the same, and what they prepare is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.perf import data


def in_this_process(work: Any, path: Path, **options: bool) -> dict[str, Any]:
    return work(path, **options)  # type: ignore[no-any-return]


def test_both_sides_prepare_the_same_and_a_second_run_finds_it_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INSTRUCTREC_CACHE", str(tmp_path / "own"))
    monkeypatch.setattr(data, "alone", in_this_process)
    said: list[str] = []
    found = data.run_data((1_000, 3_000), 3_000, said.append)

    first = found["ours"]["3000"]
    assert first["targets"] == found["again"]["targets"] == found["peer"]["targets"]
    assert first["interactions"] < 3_000  # the core removed some
    assert set(found["ours"]) == {"1000", "3000"}
    assert found["speed_up"] == found["peer"]["seconds"] / first["seconds"]
    assert len(said) == 3
    assert not (tmp_path / "own").exists()  # what is measured touches no cache of the user's
    json.dumps(found)


def test_sides_that_differ_are_not_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def one_user_less(work: Any, path: Path, **options: bool) -> dict[str, Any]:
        made = in_this_process(work, path, **options)
        return made | {"users": made["users"] - 1} if work is data.theirs else made

    monkeypatch.setattr(data, "alone", one_user_less)
    with pytest.raises(RuntimeError, match="the sides differ in users"):
        data.run_data((1_000,), 1_000, lambda line: None)


def test_rows_are_the_same_for_the_same_seed_and_shaped_as_amazons(tmp_path: Path) -> None:
    one = data.write_interactions(tmp_path / "a.csv", 2_000, seed=1).read_text()
    assert one == data.write_interactions(tmp_path / "b.csv", 2_000, seed=1).read_text()
    assert one != data.write_interactions(tmp_path / "b.csv", 2_000, seed=2).read_text()
    rows = [line.split(",") for line in one.splitlines()]
    assert len(rows) == 2_000
    assert {len(row) for row in rows} == {4}
    items = [row[1] for row in rows]
    assert items == sorted(items)  # in the order of items, not of time
    assert all(int(row[3]) % 86_400 == 0 for row in rows)
