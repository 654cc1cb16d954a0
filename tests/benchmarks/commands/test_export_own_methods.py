"""Exported adapters and prefixes: the lines of their card load them in plain transformers, with the checkpoint's scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.__main__ import main
from benchmarks.commands.export import load_run_model
from datamodules.contract.errors import InputError
from recmodels.methods.export import own_parts
from tests.benchmarks.commands.exported import TOKENS, as_the_card_says, ours, run_of
from tests.recmodels.backbones import encoder_decoders as pairs
from tests.recmodels.methods.support_matrix import build

WARNINGS = ("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
pytestmark = [pytest.mark.filterwarnings(rule) for rule in WARNINGS]
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "houlsby": ("AdapterTuning", {"bottleneck": 4}),
    "pfeiffer": ("AdapterTuning", {"placement": "pfeiffer", "activation": "silu", "scaling": 2.5}),
    "parallel": ("AdapterTuning", {"placement": "parallel", "scaling": "learned", "activation": "tanh"}),
    "prefix": ("PrefixTuning", {"length": 3}),
    "prefix_mlp": ("PrefixTuning", {"length": 3, "reparameterisation": 5}),
}


@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_a_causal_export_scores_as_the_checkpoint_does(
    method: str, tiny_causal: Path, mini_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, options = METHODS[method]
    checkpoint, out = run_of(name, tiny_causal, tmp_path / "run", **options), tmp_path / "out"
    assert main(["export", str(checkpoint), "--out", str(out)]) == 0
    assert "plain transformers, by the lines in its README.md" in capsys.readouterr().out

    expected = ours(checkpoint)
    for rows in (1, 2):
        tokens = TOKENS.expand(rows, -1)
        got = as_the_card_says(out, {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)})
        assert (got[-1].log_softmax(-1) - expected).abs().max() < 1e-4
    before = AutoModelForCausalLM.from_pretrained(tiny_causal)(TOKENS).logits[0].log_softmax(-1)
    assert (expected - before).abs().max() > 0.05, "the export is the untuned model"
    assert AutoTokenizer.from_pretrained(out)("Night")["input_ids"]
    assert json.loads((out / "instructrec_adapter.json").read_text())["base_model"] == str(tiny_causal)
    assert "- seed: 7" in (out / "README.md").read_text()


@pytest.mark.parametrize("method", ["houlsby", "parallel"])
@pytest.mark.parametrize("family", ["t5", "bart"])
@torch.no_grad()
def test_an_encoder_decoder_export_scores_as_the_checkpoint_does(
    method: str, family: str, tiny_t5: Path, tiny_bart: Path, mini_data: Path, tmp_path: Path
) -> None:
    name, options = METHODS[method]
    checkpoint = run_of(name, {"t5": tiny_t5, "bart": tiny_bart}[family], tmp_path / "run", **options)
    assert main(["export", str(checkpoint), "--out", str(tmp_path / "out")]) == 0

    model = load_run_model(checkpoint, checkpoint.parent.parent / "config.yaml", [])
    prompt, answer = [5, 9, 17, 3, 22], [7, 11, 4]
    expected = model.score(pairs.tree_batch([(prompt, [answer])]))
    logits = as_the_card_says(tmp_path / "out", {"input_ids": torch.tensor([prompt]), "labels": torch.tensor([answer])})
    got = logits[0].log_softmax(-1).gather(1, torch.tensor(answer)[:, None]).sum()
    assert (got - expected).abs().max() < 1e-4


def test_a_prefix_in_an_encoder_is_refused_in_one_line(
    tiny_t5: Path, mini_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = run_of("PrefixTuning", tiny_t5, tmp_path / "run", length=3)
    assert main(["export", str(checkpoint), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len([line for line in said if line.startswith("instructrec:")]) == 1
    assert "lies in an encoder, too" in said[-1]
    assert not (tmp_path / "out").exists()


def test_a_prefix_over_a_sliding_window_is_refused() -> None:
    assert own_parts(build("prefix", "llama").backbone) is not None
    with pytest.raises(InputError, match="would slide out of the window; keep the checkpoint"):
        own_parts(build("prefix", "mistral").backbone)
