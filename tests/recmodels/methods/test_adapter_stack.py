"""Adapters that stand on those of earlier runs: what trains, where they start, and what a checkpoint carries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from callbacks.training_guard import load_trained
from datamodules.contract.checkpoints import write_checkpoint
from datamodules.contract.errors import InputError
from recmodels.layers.bottleneck import Adapted
from recmodels.methods.adapter import AdapterTuning
from recmodels.methods.adapter_stack import levels_of
from recmodels.methods.base import InstructionRecommender
from recmodels.methods.export import own_parts
from recmodels.methods.lora import LoRATuning
from recmodels.methods.token_classification import TokenClassification
from tests.recmodels.methods.support_matrix import backbones_in_memory, batch_for
from tests.recmodels.oracle import away, two_steps

WARNINGS = ("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
pytestmark = [pytest.mark.filterwarnings(rule) for rule in WARNINGS]
LEVELS: list[dict[str, Any]] = [
    {"bottleneck": 3, "activation": "silu", "scaling": 2.0, "adapter_dropout": 0.5},
    {"placement": "parallel", "bottleneck": 4, "scaling": "learned"},
    {"placement": "pfeiffer", "bottleneck": 5, "activation": "tanh"},
]


def make(family: str, stack_on: Path | None = None, cls: type[InstructionRecommender] = AdapterTuning, **o: Any) -> Any:
    torch.manual_seed(3)
    own = {} if stack_on is None else {"stack_on": str(stack_on)}
    return cls(backbone=f"tiny/{family}", **own, **o)


def loaded(model: Any) -> Any:
    with backbones_in_memory():
        model.configure_model()
    model.log = lambda *a, **k: None
    return model.eval()


def save(model: Any, path: Path) -> dict[str, Any]:
    checkpoint: dict[str, Any] = {"state_dict": model.state_dict()}
    model.on_save_checkpoint(checkpoint)
    write_checkpoint(checkpoint, path)
    return checkpoint


@pytest.mark.parametrize(("family", "turn"), [("llama", 0), ("gpt2", 1), ("t5", 2), ("bart", 0)])
def test_three_levels(family: str, turn: int, tmp_path: Path) -> None:
    """Each starts at the scores of the one below, trains alone, and comes back without those below."""
    batch = batch_for(family)
    before, below = None, None
    paths = [tmp_path / f"{number}.ckpt" for number in range(3)]
    options = LEVELS[turn:] + LEVELS[:turn]
    for number, path in enumerate(paths):
        model = loaded(make(family, below, **options[number]))
        with torch.no_grad():
            start = model.score(batch)
        assert before is None or torch.equal(start, before)
        assert model.findings["step0_score_difference"] == 0.0
        own = {
            id(v)
            for m in model.network.modules()
            if isinstance(m, Adapted) and m.level == number
            for v in m.parts().values()
        }
        assert {id(value) for value in model.trained().values()} == own
        values = {name: value.detach().clone() for name, value in model.named_parameters()}
        two_steps(model, batch)
        moved = {name for name, value in model.named_parameters() if not torch.equal(value, values[name])}
        assert moved == set(model.trained())
        assert set(save(model, path)["state_dict"]) == moved
        with torch.no_grad():
            before = model.score(batch)
        assert not torch.equal(before, start)
        below = path
    assert [len(level.layers()) > 0 for level in levels_of(model.backbone)] == [True] * 3

    save(away(loaded(make(family, **options[0]))), paths[0])
    save(away(loaded(make(family, paths[0], **options[1]))), paths[1])
    stale = loaded(make(family, paths[1], **options[2]))  # on what the earlier runs have become
    paths[0].unlink()
    with torch.no_grad():
        assert not torch.equal(stale.score(batch), before)
        load_trained(stale, paths[2])
        assert torch.equal(stale.score(batch), before)
        paths[1].unlink()
        fresh = make(family, paths[1], **options[2])
        with backbones_in_memory():
            load_trained(fresh, paths[2])
        assert torch.equal(fresh.eval().score(batch), before)


def test_adapters_below_know_no_dropout_and_a_budget_counts_the_new_ones(tmp_path: Path) -> None:
    save(away(loaded(make("llama", **LEVELS[0]))), tmp_path / "a.ckpt")
    model = loaded(make("llama", tmp_path / "a.ckpt", budget="2%", gradient_checkpointing=True))
    assert {m.dropout.p for m in model.network.modules() if isinstance(m, Adapted) and m.level == 0} == {0.0}
    assert sum(value.numel() for value in model.trained().values()) == model.findings["budget_trained"]
    assert model.findings["stack_levels"] == 1
    assert model.findings["stack_parameters"] == sum(v.numel() for v in levels_of(model.backbone)[0].state.values())


def exported(model: Any, folder: Path, **changes: Any) -> Path:
    """The two files of an exported adapter."""
    from safetensors.torch import save_file

    told = own_parts(model.backbone)
    assert told is not None
    folder.mkdir()
    settings = told[0] | {"base_model": model.backbone_name, "base_checksum": model.base_checksum} | changes
    (folder / "instructrec_adapter.json").write_text(json.dumps(settings))
    save_file(told[1], str(folder / "instructrec_adapter.safetensors"))
    return folder


def test_what_cannot_be_stood_on_is_refused_in_one_line_before_a_model_loads(tmp_path: Path) -> None:
    first = away(loaded(make("llama", bottleneck=2)))
    good = save(first, tmp_path / "good.ckpt")
    save(loaded(make("llama", cls=LoRATuning, r=2)), tmp_path / "lora.ckpt")

    def changed(name: str, key: str, value: Any) -> Path:
        about = {k: v for k, v in good["instructrec"].items() if k != key} | ({} if value is None else {key: value})
        write_checkpoint(good | {"instructrec": about}, tmp_path / name)
        return tmp_path / name

    (tmp_path / "empty").mkdir()
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    damaged = changed("damaged.ckpt", "backbone", "tiny/llama")
    damaged.with_name("damaged.ckpt.sha256").write_text(f"{'0' * 64}  damaged.ckpt\n")
    name, value = next(iter(good["state_dict"].items()))
    write_checkpoint(good | {"state_dict": good["state_dict"] | {name: value * float("nan")}}, tmp_path / "nan.ckpt")
    cases = {
        tmp_path / "lora.ckpt": "it is of LoRATuning; adapters stand on adapters only",
        changed(
            "elsewhere.ckpt", "backbone", "tiny/t5"
        ): "belong to backbone 'tiny/t5', and model.backbone is 'tiny/llama'; use --model",
        changed(
            "old.ckpt", "adapters", None
        ): "before adapters were stacked; `instructrec export` it, and stand on that",
        changed(
            "list.ckpt", "adapters", {"activation": [], "scaling": 1.0, "reads": {}}
        ): "holds no adapters as this version",
        changed(
            "odd.ckpt", "adapters", {"activation": "eval", "scaling": 1.0, "reads": {}}
        ): "holds no adapters as this version",
        tmp_path / "empty": "empty holds neither of the last two",
        tmp_path / "text.ckpt": "cannot be read as a checkpoint",
        damaged: "damaged.ckpt is damaged: expected sha256",
        tmp_path / "nan.ckpt": "is no tensor of finite numbers",
        exported(
            first, tmp_path / "prefix", method="prefix"
        ): "it is of method 'prefix'; adapters stand on adapters only",
        exported(first, tmp_path / "older", levels=None): "export its checkpoint again",
    }
    for source, message in cases.items():
        with pytest.raises(InputError) as refused:
            make("llama", source)
        assert message in str(refused.value)
        assert str(refused.value).startswith("model.stack_on ")
        assert "\n" not in str(refused.value)
    gone = make("llama", tmp_path / "gone")  # it may yet come with a checkpoint
    with pytest.raises(InputError, match="gone is not there"):
        gone.configure_model()
    with pytest.raises(InputError, match=r"model\.tuning\.stack_on is set, and a tagger's"):
        TokenClassification(tuning=AdapterTuning(stack_on=str(tmp_path / "gone")))


def test_a_stack_on_other_weights_or_layers_or_another_stack_is_refused(tmp_path: Path) -> None:
    first = away(loaded(make("llama", bottleneck=2)))
    good = save(first, tmp_path / "good.ckpt")
    about = good["instructrec"] | {"base_checksum": "0" * 64}
    write_checkpoint(good | {"instructrec": about}, tmp_path / "weights.ckpt")
    with pytest.raises(InputError, match=r"were trained on backbone weights 000000000000, .*; use its run's model"):
        loaded(make("llama", tmp_path / "weights.ckpt"))
    state = {name.replace(".down_proj.", ".dwn_proj."): value for name, value in good["state_dict"].items()}
    write_checkpoint(good | {"state_dict": state}, tmp_path / "layers.ckpt")
    with pytest.raises(InputError, match=r"its adapter behind '.*dwn_proj' fits no layer of backbone"):
        loaded(make("llama", tmp_path / "layers.ckpt"))
    short = {name: value[:1] if value.ndim == 1 else value for name, value in good["state_dict"].items()}
    write_checkpoint(good | {"state_dict": short}, tmp_path / "short.ckpt")
    with pytest.raises(InputError, match="fits no layer of backbone"):
        loaded(make("llama", tmp_path / "short.ckpt"))

    save(loaded(make("llama", tmp_path / "good.ckpt", bottleneck=2)), tmp_path / "second.ckpt")
    with pytest.raises(
        InputError, match="stacked on 1 levels of adapters, the model on 0 or on others: use its run's own"
    ):
        load_trained(loaded(make("llama", bottleneck=2)), tmp_path / "second.ckpt")
    with pytest.raises(InputError, match="stacked on 0 levels of adapters, the model on 1"):
        load_trained(loaded(make("llama", tmp_path / "good.ckpt", bottleneck=2)), tmp_path / "good.ckpt")


def test_an_exported_folder_is_stood_on_as_its_checkpoint(tmp_path: Path) -> None:
    first = away(loaded(make("t5", **LEVELS[1])))
    batch = batch_for("t5")
    model = loaded(make("t5", exported(first, tmp_path / "folder"), bottleneck=2))
    with torch.no_grad():
        assert torch.equal(model.score(batch), first.score(batch))
