"""Exported folders: plain transformers and PEFT load them and give the scores of the checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from benchmarks.__main__ import main
from benchmarks.commands.export import load_run_model, model_card
from datamodules.contract.items import ItemTokens
from tests.benchmarks.commands.exported import TOKENS, ours, run_of

WARNINGS = ("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
pytestmark = [pytest.mark.filterwarnings(rule) for rule in WARNINGS]


@pytest.mark.parametrize(("name", "merge"), [("LoRATuning", True), ("LoRATuning", False), ("FullTuning", False)])
@torch.no_grad()
def test_an_export_gives_the_same_scores_in_plain_libraries(
    name: str, merge: bool, tiny_causal: Path, mini_data: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    checkpoint, out = run_of(name, tiny_causal, tmp_path / "run"), tmp_path / "out"

    assert main(["export", str(checkpoint), "--out", str(out), *(["--merge"] if merge else [])]) == 0

    untuned = AutoModelForCausalLM.from_pretrained(tiny_causal)
    before = untuned(TOKENS).logits[0].log_softmax(-1)
    if name == "LoRATuning" and not merge:
        from peft import PeftModel

        loaded = PeftModel.from_pretrained(untuned, out)
    else:
        loaded = AutoModelForCausalLM.from_pretrained(out)
    got = loaded.eval()(TOKENS).logits[0].log_softmax(-1)
    assert (got - ours(checkpoint)).abs().max() < 1e-4
    assert (got - before).abs().max() > 0.1, "the export is the untuned model"
    assert AutoTokenizer.from_pretrained(out)("Night")["input_ids"]
    card = (out / "README.md").read_text()
    assert "| test/hr@5 | 0.25 |" in card
    assert "- seed: 7" in card
    assert sorted(tmp_path.iterdir()) == [out, tmp_path / "run"], "scratch is left behind"


@pytest.mark.parametrize(("name", "merge"), [("AdapterTuning", True), ("PrefixTuning", True)])
def test_what_no_library_holds_is_refused_in_one_line(
    name: str,
    merge: bool,
    tiny_causal: Path,
    mini_data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    checkpoint, out = run_of(name, tiny_causal, tmp_path / "run"), tmp_path / "out"

    assert main(["export", str(checkpoint), "--out", str(out), *(["--merge"] if merge else [])]) == 2

    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert f"{name} {'cannot be merged' if merge else 'has no PEFT adapter'}" in said[0]
    assert not out.exists()


def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("kept")
    stray = tmp_path / "stray.ckpt"
    stray.write_text("no checkpoint")
    run = tmp_path / "run" / "checkpoints"
    run.mkdir(parents=True)
    (run / "best.ckpt").write_text("no checkpoint")
    (run.parent / "config.yaml").write_text("model: {}\n")
    for checkpoint, out, expected in (
        (tmp_path / "none.ckpt", tmp_path / "new", "does not exist"),
        (stray, tmp_path / "new", "is not a checkpoint in a run's folder"),
        (run / "best.ckpt", tmp_path / "full", "is not an empty folder"),
    ):
        assert main(["export", str(checkpoint), "--out", str(out)]) == 2
        said = capsys.readouterr().err.strip().splitlines()
        assert len(said) == 1
        assert expected in said[0]
    assert (tmp_path / "full" / "file").read_text() == "kept"


def test_a_file_that_is_no_checkpoint_is_refused(
    tiny_causal: Path, mini_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = run_of("LoRATuning", tiny_causal, tmp_path / "run")
    checkpoint.write_text("no checkpoint")

    assert main(["export", str(checkpoint), "--out", str(tmp_path / "out")]) == 2
    assert str(checkpoint) in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["LoRATuning", "AdapterTuning", "FullTuning"])
def test_vectors_of_items_are_never_left_behind_in_silence(
    name: str, tiny_causal: Path, mini_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vocabulary = json.loads((tiny_causal / "config.json").read_text())["vocab_size"]
    checkpoint = run_of(name, tiny_causal, tmp_path / "run", items=ItemTokens(vocabulary, ((1,), (2, 3))))
    for words in ([], ["--merge"]):
        assert main(["export", str(checkpoint), "--out", str(tmp_path / "out"), *words]) == 2
        assert "its items are tokens" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_adapter_has_the_tensors_of_the_checkpoint_and_no_others(
    tiny_causal: Path, mini_data: Path, tmp_path: Path
) -> None:
    checkpoint = run_of("LoRATuning", tiny_causal, tmp_path / "run")
    model = load_run_model(checkpoint, checkpoint.parent.parent / "config.yaml", [])

    _, state = model.peft_parts()

    assert sorted(v.sum().item() for v in state.values()) == pytest.approx(
        sorted(v.sum().item() for v in model.trained().values())
    )


def test_the_card_says_only_what_is_recorded() -> None:
    assert "Costs" not in model_card({}, "a", True)
    head = yaml.safe_load(model_card({}, "a: b", False).split("---")[1])
    assert head == {"base_model": "a: b", "library_name": "peft", "tags": ["recommendation", "instructrec"]}
