"""Run folders as real runs leave them, read back."""

from __future__ import annotations

import csv
from pathlib import Path

from benchmarks.analysis.runs import read_suite


def test_learning_curves_are_those_that_a_real_run_wrote(real_grid: Path) -> None:
    runs = read_suite(real_grid).runs
    tuned = [run for run in runs if run.kind == "tuned"]
    assert len(tuned) == 2
    for run in tuned:
        lines = list(csv.DictReader((run.folder / "metrics.csv").read_text().splitlines()))
        for name, least in (("train/loss", 6), ("val/hr@5", 3)):
            logged = [(float(line["step"]), float(line[name])) for line in lines if line[name]]
            assert run.curves[name] == logged
            assert len(logged) >= least
    assert not any("train/loss" in run.curves for run in runs if run.kind != "tuned")
