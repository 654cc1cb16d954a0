"""A plug-in is enabled by name, for one command; nothing but the command line can do it."""

from __future__ import annotations

import gc
import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.cli.allowed_imports import class_named

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
WARNINGS = ("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
pytestmark = [pytest.mark.filterwarnings(rule) for rule in WARNINGS]

PLUGIN = '''
from typing import Any
from recmodels.backbones.base import Backbone
from recmodels.methods.base import InstructionRecommender


class NormTuning(InstructionRecommender):
    """Trains the norms alone.

    Args:
        last: only the last norm.
        **kwargs: of `InstructionRecommender`.
    """

    def __init__(self, last: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.last = last

    def tune(self, backbone: Backbone) -> None:
        names = [name for name, _ in backbone.model.named_parameters() if "norm" in name]
        for name in names[-1:] if self.last else names:
            backbone.model.get_parameter(name).requires_grad_(True)


def tune(*args: Any) -> None:
    """No class."""
'''


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    name = f"my_methods_{tmp_path.name.replace('-', '_')}"
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield name
    sys.modules.pop(name, None)


def run(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    capsys.readouterr()
    try:
        code = main(words)
    except SystemExit as end:
        code = int(end.code or 0)
    return code, capsys.readouterr().err


def test_a_plug_in_s_method_is_tuned_like_any_other(
    plugin: str, mini_data: Path, tiny_causal: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    small = ["--trainer.max_steps=2", "--trainer.val_check_interval=2", "--trainer.logger=false"]
    words = ["--data=MovieLens100K", f"--model.backbone={tiny_causal}", "--data.protocol.negatives=4", *small]
    named = [f"--model={plugin}.NormTuning", "--model.last=true", *words, "--out", str(out)]
    for command in (["--allow-import", plugin, "fit", *named], ["fit", *named, f"--allow-import={plugin}"]):
        code, err = run(command, capsys)
        assert code == 0, err
        record = json.loads((out / "record.json").read_text())
        assert record["model"]["class"] == "NormTuning"
        assert record["status"] == "finished"
        assert record["costs"]["trainable_parameters"] == 32
        assert "allow" not in (out / "config.yaml").read_text()
        (out / "record.json").unlink()
    code, err = run(["fit", *named], capsys)
    assert code == 2, "allowed for one command, not for the next"
    assert f"model: '{plugin}.NormTuning' must not be named in a config" in err
    code, err = run(["fit", "--allow-import", plugin, "--model=NormTuning", *words, "--print_config"], capsys)
    assert code == 0, err


def test_of_a_plug_in_classes_only_are_named(plugin: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("tune", "Any", "InstructionRecommender.tune"):
        words = ["fit", "--allow-import", plugin, "--model=LoRATuning", "--data=MovieLens100K"]
        code, err = run([*words, f"--model.optimizer={plugin}.{name}", "--out", str(tmp_path / "run")], capsys)
        assert code == 2, name
        assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--allow-import", "no_such_package"], "--allow-import no_such_package: cannot be imported"),
        (["--allow-import", "no/such"], "a package name is needed"),
        (["--allow-import="], "a package name is needed"),
        (["--allow-import"], "a package name is needed"),
        (["--allow-import", "jsonargparse"], "cannot be imported"),
    ],
)
def test_what_is_no_plug_in_is_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, err = run(["fit", "--model=Random", "--data=MovieLens100K", *words], capsys)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


def test_a_broken_plug_in_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken_methods.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(str(tmp_path))
    code, err = run(["--allow-import", "broken_methods", "fit", "--model=Random"], capsys)
    assert code == 2
    assert "cannot be imported (ZeroDivisionError" in err


def test_help_tells_of_plug_ins(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--help"], ["fit", "--help"]):
        assert main(words) == 0
        assert "--allow-import PACKAGE" in capsys.readouterr().out
    for words in (["fit", "--help=all"], ["benchmark", "--help"]):
        with pytest.raises(SystemExit) as end:
            main(words)
        assert end.value.code == 0
        assert "--allow-import PACKAGE" in capsys.readouterr().out


def test_a_grid_hands_plug_ins_on_to_its_cells(plugin: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "suite.yaml").write_text(f"name: t\naxes: {{model: [{plugin}.NormTuning, Random]}}\n")
    words = ["benchmark", str(tmp_path / "suite.yaml"), "--out", str(tmp_path / "grid"), "--dry-run"]
    assert main([*words, "--allow-import", plugin]) == 0
    assert capsys.readouterr().out.count(f"instructrec fit --allow-import={plugin} ") == 2
    assert main(["--allow-import", plugin, *words]) == 0
    assert capsys.readouterr().out.count(f"instructrec fit --allow-import={plugin} ") == 2
    assert main(words) == 0
    assert "allow-import" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("recmodels.methods.lora.LoRATuning", True),
        ("recmodels.LoRATuning", True),
        ("torch.optim.SGD", True),
        ("torch.optim.lr_scheduler.LambdaLR", False),
        ("lightning.pytorch.callbacks.EarlyStopping", True),
        ("lightning.pytorch.loggers.CSVLogger", True),
        ("lightning.pytorch.Trainer", False),
        ("recmodels.base.torch.nn.Linear", False),
        ("recmodels.base.Tensor", False),
        ("recmodels.backbones.base.load_causal", False),
        ("os.system", False),
        ("LoRATuning", False),
        ("", False),
        ("recmodels..x", False),
    ],
)
def test_names_are_judged_by_place_and_kind(path: str, allowed: bool) -> None:
    assert (class_named(path) is not None) == allowed


def test_a_bare_name_means_what_may_be_named_whatever_else_is_installed(
    mini_data: Path, tiny_causal: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """bitsandbytes has an AdamW, too, and PEFT imports it where it is installed."""
    other = type("AdamW", (torch.optim.Optimizer,), {"__module__": "elsewhere", "__qualname__": "AdamW"})
    module = types.ModuleType("elsewhere")
    module.AdamW = other  # type: ignore[attr-defined]
    sys.modules["elsewhere"] = module
    try:
        words = [
            "-c",
            str(CONFIGS / "model/lora.yaml"),
            "-c",
            str(CONFIGS / "data/ml_100k.yaml"),
            f"--model.backbone={tiny_causal}",
        ]
        out = tmp_path / "run"
        fast = ["--trainer.max_steps=1", "--trainer.logger=false", "--data.protocol.negatives=6", f"--out={out}"]
        code, err = run(["fit", *words, *fast], capsys)
        assert code == 0, err
        assert "torch.optim.AdamW" in (out / "config.yaml").read_text()
    finally:
        del sys.modules["elsewhere"], module, other
        gc.collect()
