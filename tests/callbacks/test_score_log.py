"""Scores come back in case order, whatever the batches were."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from hypothesis import given
from hypothesis import strategies as st

from callbacks import ScoreLog


@given(
    order=st.permutations(range(7)), cut=st.integers(1, 7), sizes=st.lists(st.integers(1, 4), min_size=7, max_size=7)
)
def test_columns_are_in_case_order(order: list[int], cut: int, sizes: list[int]) -> None:
    log = ScoreLog()
    for begin in range(0, 7, cut):
        cases = order[begin : begin + cut]
        owner = [row for row, case in enumerate(cases) for _ in range(sizes[case])]
        items = [10 * case + branch for case in cases for branch in range(sizes[case])]
        outputs = SimpleNamespace(
            case=torch.tensor(cases),
            branch_case=torch.tensor(owner),
            branch_item=torch.tensor(items),
            score=torch.tensor(items).float() / 7,
            relevance=torch.tensor([float(item % 10 == 0) for item in items]),
            candidates=torch.tensor([100 + case for case in cases]),
            total_relevant=torch.tensor([1 + case for case in cases]),
            answers="candidates",
        )
        log.on_test_batch_end(None, None, outputs, None, 0)  # type: ignore[arg-type]
    columns = log.columns()
    assert columns["case"].tolist() == list(range(7))
    assert columns["case_start"].diff().tolist() == sizes
    assert columns["item"].tolist() == [10 * case + branch for case in range(7) for branch in range(sizes[case])]
    assert torch.equal(columns["score"], columns["item"].float() / 7)
    assert columns["relevance"].sum() == 7
    assert columns["candidates"].tolist() == list(range(100, 107))
    assert columns["total_relevant"].tolist() == list(range(1, 8))
