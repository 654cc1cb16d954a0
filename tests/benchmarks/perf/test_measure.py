from __future__ import annotations

import numpy as np
import pytest

from benchmarks.perf.compare import judged
from benchmarks.perf.measure import (
    Agreement,
    Comparison,
    ComparisonRule,
    DisagreementError,
    SideResult,
    Turn,
    shortfall,
    speed_up,
)

RULE = ComparisonRule("scores", "score", "largest", tolerance=0.1, exact_tolerance=1e-4)


def values(*numbers: float) -> dict[str, np.ndarray]:
    return {"score": np.array(numbers)}


def test_speed_up_counts_work_a_second_and_pairs_neighbouring_turns() -> None:
    ours, peer = SideResult([1.0, 2.0, 4.0], 10, {}, {}), SideResult([8.0, 8.0, 8.0], 5, {}, {})
    assert speed_up(ours, peer) == {"median": 8.0, "min": 4.0, "max": 16.0}


def test_turns_that_do_not_pair_are_refused() -> None:
    with pytest.raises(ValueError, match="longer"):
        speed_up(SideResult([1.0], 1, {}, {}), SideResult([1.0, 2.0], 1, {}, {}))


@pytest.mark.parametrize(
    ("distance", "ours", "peer", "expected"),
    [
        ("largest", (1.0, 2.0), (1.5, 1.8), 0.5),
        ("relative", (3.0, 4.0), (3.0, 5.0), 1 / np.sqrt(34)),
        ("unshared", (1.0, np.nan, 2.0, np.nan), (1.0, 2.0, np.nan, np.nan), 2 / 3),
        ("common", (1.0, np.nan, 2.5), (1.0, 2.0, 2.0), 0.5),
        ("worse", (-1.0, -3.0, np.nan), (-1.0, np.nan, -2.5), 0.25),
    ],
)
def test_distances(distance: str, ours: tuple[float, ...], peer: tuple[float, ...], expected: float) -> None:
    rule = ComparisonRule("scores", "score", distance, 1.0, 1.0)  # type: ignore[arg-type]
    assert rule.difference(values(*ours), values(*peer)) == pytest.approx(expected)


def test_a_search_that_finds_fewer_is_worse_without_bound_and_one_that_finds_more_is_not() -> None:
    few, many = np.array([[-1.0, np.nan]]), np.array([[-1.0, -9.0]])
    assert shortfall(few, many) == np.inf
    assert shortfall(many, few) == 0.0


@pytest.mark.parametrize(
    ("ours", "peer"),
    [((1.0, 2.0), (1.0,)), ((np.nan, 1.0), (0.0, 1.0)), ((1.0, np.inf), (1.0, 2.0)), ((), ())],
)
def test_results_that_cannot_be_compared_are_refused(ours: tuple[float, ...], peer: tuple[float, ...]) -> None:
    with pytest.raises(DisagreementError):
        RULE.difference(values(*ours), values(*peer))


@pytest.mark.parametrize("difference", [0.2, float("nan"), float("inf")])
def test_a_difference_beyond_its_tolerance_is_refused(difference: float) -> None:
    with pytest.raises(DisagreementError, match="scores, bfloat16: ours and padded differ"):
        Agreement("scores", "bfloat16", "padded", difference, 0.1).check()


def finished(turns: dict[str, list[Turn]], exact: dict[str, dict[str, np.ndarray]]) -> dict:
    comparison = Comparison("x", "a title", "users", dict.fromkeys(turns), {"b": 2.0}, [RULE])  # type: ignore[arg-type]
    return judged(comparison, turns, {name: (exact[name], {"peak_bytes": 1}, {"k": 1}) for name in turns})


def test_the_warm_up_is_compared_and_never_timed() -> None:
    turns = {
        "a": [Turn(100.0, 2, values(1.0)), Turn(1.0, 2), Turn(1.0, 2)],
        "b": [Turn(100.0, 2, values(1.05)), Turn(3.0, 2), Turn(5.0, 2)],
    }
    made = finished(turns, {"a": values(1.0), "b": values(1.00001)})
    assert made["ours"] == "a"
    assert made["sides"]["b"]["seconds"] == [3.0, 5.0]
    assert made["sides"]["b"]["summary"] == {"median": 4.0, "min": 3.0, "max": 5.0}
    assert made["speed_up"] == {"b": {"median": 4.0, "min": 3.0, "max": 5.0, "target": 2.0}}
    found = [(a["precision"], a["peer"], round(a["difference"], 6), a["tolerance"]) for a in made["agreement"]]
    assert found == [("bfloat16", "b", 0.05, 0.1), ("float32", "b", 1e-05, 1e-4)]


@pytest.mark.parametrize(("warm", "exact"), [(1.2, 1.0), (1.0, 1.001)])
def test_sides_that_disagree_in_either_precision_have_no_times(warm: float, exact: float) -> None:
    turns = {"a": [Turn(1.0, 1, values(1.0)), Turn(1.0, 1)], "b": [Turn(1.0, 1, values(warm)), Turn(1.0, 1)]}
    with pytest.raises(DisagreementError):
        finished(turns, {"a": values(1.0), "b": values(exact)})
