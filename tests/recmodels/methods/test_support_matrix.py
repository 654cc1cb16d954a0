"""Every tuning method on every family of backbones does what it promises, or is refused as the README tells."""

from __future__ import annotations

import pytest

from tests.recmodels.methods.support_matrix import FAMILIES, METHODS, documented, outcome, table

# transformers' and PEFT's own words about each other and about their defaults.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("UserWarning", "DeprecationWarning", "FutureWarning")
]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_a_method_keeps_its_promises_or_is_refused_as_documented(method: str, family: str) -> None:
    """On a difference: `python -m tests.recmodels.methods.support_matrix` writes the table anew."""
    assert outcome(method, family) == documented()[method][family]


def test_the_table_tells_of_every_method_and_every_family() -> None:
    told = documented()
    assert list(told) == list(METHODS)
    assert all(list(row) == list(FAMILIES) for row in told.values())


def test_a_table_can_be_read_back() -> None:
    found = {"lora": {"llama": "yes", "t5": "why; use this"}, "peft/ia3": {"llama": "why; use this", "t5": "other"}}
    assert "| lora | yes | (1) |" in table(found)
    assert "| peft/ia3 | (1) | (2) |" in table(found)
