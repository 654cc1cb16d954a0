"""What tests of several rooms start from."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.grid.cells import Cell
from benchmarks.grid.ledger import Ledger
from benchmarks.launchers import Launcher, Summary
from tests.benchmarks.report.grids import Grid


@pytest.fixture
def grid(tmp_path: Path) -> Grid:
    """The folder of a grid without runs."""
    (tmp_path / "suite.yaml").write_text("name: tiny\ndescription: two ways of tuning\n")
    (tmp_path / "runs").mkdir()
    return Grid(tmp_path)


@dataclass(frozen=True)
class InProcess(Launcher):
    """A launcher that runs its cells here, so that four runs need not import torch eight times."""

    def run(self, cells: Sequence[Cell], ledger: Ledger, **_: Any) -> Summary:
        """Runs every cell by its own command."""
        import wandb

        from benchmarks.__main__ import main

        for cell in cells:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what libraries warn of while whole commands run is theirs
                assert main(list(cell.command[1:])) == 0, cell.command
                wandb.finish()
        return Summary(finished=tuple(cell.name for cell in cells))


@pytest.fixture(scope="session")
def finished_grid(
    tmp_path_factory: pytest.TempPathFactory, data_root: Path, tiny_causal: Path, scratch_cache: Path
) -> Path:
    """The folder of a grid of real runs: two ways of tuning, the untuned model, and a baseline."""
    from benchmarks.commands.benchmark import run_benchmark

    folder = tmp_path_factory.mktemp("real")
    configs = Path(__file__).parents[2] / "configs"
    tuned = {"overrides": {"model.backbone": str(tiny_causal)}}
    names = ("lora", "adapter", "zero_shot", "popularity")
    models = [
        {"name": name, "config": str(configs / "model" / f"{name}.yaml"), **(tuned if place < 3 else {})}
        for place, name in enumerate(names)
    ]
    suite = {
        "name": "real",
        "description": "two ways of tuning",
        "configs": [str(configs / "data" / "ml_100k.yaml")],
        "overrides": {
            # As configs/trainer/default.yaml has it, but for W&B, which is slow to start.
            "trainer.logger": [{"class_path": "CSVLogger", "init_args": {"save_dir": ".", "name": "", "version": ""}}],
            "trainer.max_steps": 6,
            "trainer.val_check_interval": 2,
            "trainer.log_every_n_steps": 1,
            "data.protocol.negatives": 6,
            "data.batch_size": 2,
        },
        "axes": {"model": models, "seed_everything": [1]},
    }
    (folder / "real.yaml").write_text(yaml.safe_dump(suite))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (
            ("INSTRUCTREC_DATA", str(data_root)),
            ("INSTRUCTREC_CACHE", str(scratch_cache)),
            ("HF_HUB_OFFLINE", "1"),
            ("WANDB_MODE", "offline"),
            ("WANDB_SILENT", "true"),
        ):
            patch.setenv(name, value)
        assert run_benchmark(folder / "real.yaml", folder / "out", launcher=InProcess("local")) == 0
    return folder / "out"


@pytest.fixture
def real_grid(finished_grid: Path, tmp_path: Path) -> Path:
    """A copy of it, to write reports into."""
    return Path(shutil.copytree(finished_grid, tmp_path / "out"))
