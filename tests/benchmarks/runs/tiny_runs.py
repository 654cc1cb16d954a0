"""A grid of real, tiny runs, for tests of whatever reads the folder of a run: made once a session, never by hand."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

SUITE = "name: tiny\ndescription: a tuned model, the same untuned, and popularity\n"
CSV = '{"class_path": "CSVLogger", "init_args": {"save_dir": ".", "name": "", "version": ""}}'
ROWS = {"lora": "LoRATuning", "zero_shot": "ZeroShot", "popularity": "Popularity"}
STEPS, VALIDATE_EVERY = 4, 2


def write_tiny_grid(root: Path, data: Path, backbone: Path, cache: Path) -> None:
    """Fits every row into `root/runs/model=ROW-1`, as `instructrec fit` does."""
    from benchmarks.__main__ import main

    (root / "runs").mkdir(parents=True)
    (root / "suite.yaml").write_text(SUITE)
    for row, model in ROWS.items():
        words = [
            *(f"--model={model}", "--data=MovieLens100K", "--data.batch_size=2", "--data.protocol.negatives=6"),
            *(f"--trainer.max_steps={STEPS}", f"--trainer.val_check_interval={VALIDATE_EVERY}"),
            *(f"--trainer.logger={CSV}", "--trainer.log_every_n_steps=1", "--trainer.precision=32-true"),
            *(f"--name={row}", f"--out={root / 'runs' / f'model={row}-1'}"),
        ]
        if row != "popularity":
            words.append(f"--model.backbone={backbone}")
        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            patch.setenv("INSTRUCTREC_DATA", str(data))
            patch.setenv("INSTRUCTREC_CACHE", str(cache))
            patch.setenv("HF_HUB_OFFLINE", "1")
            assert main(["fit", *words]) == 0
