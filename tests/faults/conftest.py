"""One warm process for all trials of a session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.trials import Runs
from tests.faults.warm import Warm


@pytest.fixture(scope="session")
def runs(data_root: Path, tiny_causal: Path, tiny_encoder: Path, tiny_t5: Path) -> Iterator[Runs]:
    """Runs commands in children of a warm process, on the miniature data and the tiny backbones."""
    warm = Warm({"INSTRUCTREC_DATA": str(data_root), "HF_HUB_OFFLINE": "1"})
    yield Runs(warm, data_root, tiny_causal, tiny_encoder, tiny_t5)
    warm.close()
