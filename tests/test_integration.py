"""The real data and the real weights, from the package index, through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.__main__ import main
from datamodules.sources.pretrained import pooling_of, pretrained_folder

ROOT = Path(__file__).resolve().parents[1]
pytestmark = [
    pytest.mark.integration,
    # What libraries warn of while whole commands run is theirs; the packages' own tests run with warnings as errors.
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def test_lora_on_movielens_with_smollm2(tmp_path: Path) -> None:
    out = tmp_path / "lora"
    small = ["--data.protocol.test_users=4", "--data.protocol.validation_users=2", "--trainer.max_steps=2"]
    configs = ["-c", f"{ROOT}/configs/model/lora.yaml", "-c", f"{ROOT}/configs/data/ml_100k.yaml"]
    few = ["--data.batch_size=1", "--data.eval_batch_size=4", "--trainer.val_check_interval=1"]
    code = main(["fit", *configs, "--out", str(out), *few, *small, "--trainer.logger=false"])
    assert code == 0
    record = json.loads((out / "record.json").read_text())
    statistics = record["protocol"]["statistics"]
    assert (statistics["users"], statistics["items"], statistics["interactions"]) == (943, 1682, 100_000)
    assert round(statistics["users_with_ambiguous_last_item"], 3) == 0.440
    assert record["guards"]["reloaded_score_difference"] == 0
    assert record["costs"]["trainable_parameters"] == 2_442_240  # r = 8 on the seven linear layers of thirty blocks
    assert record["costs"]["test_tokens_unshared"] > 8 * record["costs"]["test_tokens"]  # what the tree saves
    scores = np.load(out / "scores.npz")["score"].reshape(4, 20)
    assert len(np.unique(scores)) > 64  # real scores, not constants
    prompt = record["samples"][0]["prompt"]
    assert prompt.startswith("You recommend movies.")
    assert "Which movie comes next?" in prompt


def test_the_encoder_baseline_on_movielens(tmp_path: Path) -> None:
    out = tmp_path / "tags"
    small = ["--data.protocol.test_users=16", "--data.protocol.validation_users=8", "--trainer.max_steps=2"]
    configs = ["-c", f"{ROOT}/configs/model/token_classification.yaml", "-c", f"{ROOT}/configs/data/ml_100k.yaml"]
    code = main(["fit", *configs, "--out", str(out), "--data.batch_size=1", *small, "--trainer.logger=false"])
    assert code == 0
    metrics = json.loads((out / "record.json").read_text())["metrics"]
    assert metrics["test/tag_recommend_support"] > 16
    assert metrics["test/tag_o_support"] > 10 * metrics["test/tag_recommend_support"]


def test_the_packaged_sentence_encoder_says_how_it_is_pooled() -> None:
    """Read from the files that sentence-transformers wrote, and not because they are missing."""
    assert (pretrained_folder("all-minilm-l6-v2") / "1_Pooling" / "config.json").is_file()
    assert pooling_of("all-minilm-l6-v2") == "mean"
