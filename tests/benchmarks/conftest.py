"""What tests of several rooms start from."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.report.grids import Grid


@pytest.fixture
def grid(tmp_path: Path) -> Grid:
    """The folder of a grid without runs."""
    (tmp_path / "suite.yaml").write_text("name: tiny\ndescription: two ways of tuning\n")
    (tmp_path / "runs").mkdir()
    return Grid(tmp_path)
