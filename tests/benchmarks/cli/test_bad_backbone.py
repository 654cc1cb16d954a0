"""A backbone that cannot be used: one line, exit code 2, before any training."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from benchmarks.__main__ import main

CONFIGS = Path(__file__).resolve().parents[3] / "configs"


@pytest.mark.filterwarnings("ignore")
def test_a_tokenizer_that_outgrew_the_embeddings(
    mini_data: Path, tiny_causal: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backbone, out = tmp_path / "grown", tmp_path / "run"
    shutil.copytree(tiny_causal, backbone)
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    rows = len(tokenizer)
    tokenizer.add_tokens(["Night of", "Return of", "Lost"])
    tokenizer.save_pretrained(backbone)
    words = ["-c", str(CONFIGS / "model/lora.yaml"), "-c", str(CONFIGS / "data/ml_100k.yaml"), f"--out={out}"]
    assert main(["fit", *words, f"--model.backbone={backbone}", "--trainer.logger=false"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("instructrec:")]
    assert f"{len(tokenizer)} token ids and the model {rows} embeddings" in line
    assert not list(out.rglob("*.ckpt"))
