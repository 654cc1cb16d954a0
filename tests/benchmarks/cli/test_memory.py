"""The command line, and nothing that loads a model, has the process keep what it frees; never for four bits."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.cli import app
from recmodels.backbones import loading
from recmodels.backbones.causal import load_causal

CONFIGS = Path(__file__).resolve().parents[3] / "configs"


@pytest.mark.parametrize(("quantization", "calls"), [("null", 1), ("4bit", 0)])
@pytest.mark.filterwarnings("ignore")
def test_the_program_start_says_it_once(
    quantization: str, calls: int, mini_data: Path, tiny_causal: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[bool] = []
    monkeypatch.setattr(app, "keep_freed_memory", lambda: said.append(True))
    words = ["-c", str(CONFIGS / "model/lora.yaml"), "-c", str(CONFIGS / "data/ml_100k.yaml"), "--out", str(tmp_path)]
    options = [f"--model.quantization={quantization}", f"--model.backbone={tiny_causal}", "--model.targets=[none]"]
    assert main(["fit", *words, *options, "--trainer.logger=false"]) == 2  # no such target
    assert len(said) == calls


def test_loading_a_model_leaves_the_process_as_it_is(tiny_causal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "keep_freed_memory", lambda: pytest.fail("called"))
    load_causal(str(tiny_causal), "float32")
