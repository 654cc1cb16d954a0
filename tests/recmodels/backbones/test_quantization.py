"""Methods over a backbone in four bits: what trains, what stays, whose scores they give, and what is refused."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn

from callbacks.cost_meter import CostMeter
from callbacks.training_guard import load_trained
from datamodules.contract.errors import InputError
from recmodels.backbones.base import widths
from recmodels.backbones.causal import CausalBackbone
from recmodels.backbones.quantization import holds_four_bits, is_quantised
from recmodels.methods.adapter import AdapterTuning
from recmodels.methods.base import InstructionRecommender
from recmodels.methods.full import FullTuning
from recmodels.methods.lora import LoRATuning
from recmodels.methods.peft import PeftTuning
from recmodels.methods.prefix import PrefixTuning
from recmodels.methods.token_classification import TokenClassification
from recmodels.methods.zero_shot import ZeroShot
from tests.recmodels.backbones import encoder_decoders as pairs
from tests.recmodels.oracle import CASES, plain_scores, save, tree_batch, two_steps

pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("UserWarning", "DeprecationWarning", "FutureWarning")
]
FOUR: Any = {"quantization": "4bit"}
METHODS: dict[str, Any] = {
    "lora": lambda **o: LoRATuning(r=4, **o),
    "adapter": lambda **o: AdapterTuning(bottleneck=3, **o),
    "parallel": lambda **o: AdapterTuning(bottleneck=3, placement="parallel", **o),
    "prefix": lambda **o: PrefixTuning(length=3, **o),
    "ia3": lambda **o: PeftTuning(peft.IA3Config(), **o),
    "dora": lambda **o: PeftTuning(peft.LoraConfig(use_dora=True, target_modules="all-linear"), **o),
    "ln_tuning": lambda **o: PeftTuning(peft.LNTuningConfig(), **o),
    "prompt_tuning": lambda **o: PeftTuning(peft.PromptTuningConfig(num_virtual_tokens=3), **o),
}
PAIRS = [(m, f) for f in ("llama", "t5", "bart") for m in METHODS if f == "llama" or m != "prompt_tuning"]
every_pair = pytest.mark.parametrize(("method", "family"), PAIRS)


@pytest.fixture
def make(tiny_causal: Path, tiny_t5: Path, tiny_bart: Path) -> Any:
    def build(method: Any, family: str = "llama", **options: Any) -> InstructionRecommender:
        folder = {"llama": tiny_causal, "t5": tiny_t5, "bart": tiny_bart}[family]
        torch.manual_seed(3)
        made = METHODS[method] if isinstance(method, str) else method
        model: InstructionRecommender = made(backbone=str(folder), **FOUR | options)
        model.configure_model()
        model.log = lambda *a, **k: None  # type: ignore[method-assign]
        return model

    return build


def batch_for(model: InstructionRecommender) -> Any:
    return tree_batch(CASES, 16, 2048) if isinstance(model.backbone, CausalBackbone) else pairs.tree_batch(CASES)


@every_pair
def test_only_the_method_trains_and_its_checkpoint_comes_back(
    make: Any, method: str, family: str, tmp_path: Path
) -> None:
    model = make(method, family)
    packed = [one for one in model.backbone.model.modules() if is_quantised(one)]
    assert packed
    assert all(one.weight.dtype == torch.uint8 for one in packed)
    assert model.findings.get("step0_score_difference", 0.0) <= 1e-5
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    two_steps(model, batch_for(model))
    moved = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert moved == set(model.trained())
    path = save(model, tmp_path / "a.ckpt")
    assert set(torch.load(path, weights_only=True)["state_dict"]) == set(model.trained())
    fresh, batch = make(method, family).eval(), batch_for(model)
    with torch.no_grad():
        assert not torch.equal(fresh.score(batch), model.score(batch))
        load_trained(fresh, path)
        assert torch.equal(fresh.score(batch), model.score(batch))


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "t5", "bart"])
def test_scores_are_those_of_the_unpacked_weights(make: Any, family: str) -> None:
    """The oracle: a plain model that holds what the four bits stand for."""
    from bitsandbytes.functional import dequantize_4bit

    model, plain = make("lora", family).eval(), make(ZeroShot, family, quantization=None).eval()
    batch, full = batch_for(model), plain.score(batch_for(plain))
    for name, layer in model.backbone.model.named_modules():
        if is_quantised(layer):
            own = plain.backbone.model.get_submodule(name.removesuffix(".base_layer"))
            assert own.weight.shape == widths(layer)[::-1]
            own.weight.copy_(dequantize_4bit(layer.weight, layer.weight.quant_state))
    torch.testing.assert_close(model.score(batch), plain.score(batch), atol=1e-4, rtol=1e-5)
    assert not torch.allclose(plain.score(batch), full, atol=1e-3), "nothing was rounded"


def test_an_exported_adapter_gives_the_scores_in_peft(make: Any, tiny_causal: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    from recmodels.backbones.quantization import four_bits, keep_packing

    model = make("lora")
    two_steps(model, batch_for(model))
    config, state = model.peft_parts()
    config.save_pretrained(str(tmp_path))
    save_file(state, tmp_path / "adapter_model.safetensors")
    base = AutoModelForCausalLM.from_pretrained(
        tiny_causal, dtype=torch.float32, quantization_config=four_bits(torch.float32)
    )
    keep_packing(base)
    opened = peft.PeftModel.from_pretrained(base, str(tmp_path))
    with torch.no_grad():
        torch.testing.assert_close(plain_scores(opened, CASES), model.score(batch_for(model)), atol=1e-4, rtol=1e-5)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the system does not tell what is mapped")
def test_the_original_weights_are_let_go(tiny_causal: Path, tmp_path: Path) -> None:
    """What is not quantised was a view of the mapped file, and kept all of its pages in memory."""
    folder = Path(shutil.copytree(tiny_causal, tmp_path / "backbone"))
    model = METHODS["lora"](backbone=str(folder), **FOUR)
    model.configure_model()
    assert str(folder) not in Path("/proc/self/maps").read_text()
    head, words = model.backbone.output_embeddings, model.backbone.model.get_input_embeddings()
    assert (head.weight is words.weight) == model.backbone.model.config.tie_word_embeddings


def test_adapters_in_four_bits_stand_on_adapters_in_four_bits(make: Any, tmp_path: Path) -> None:
    first = make("adapter")
    for value in first.trained().values():
        nn.init.normal_(value, std=0.1)
    path, batch = tmp_path / "a.ckpt", batch_for(first)
    save(first, path)
    second = make("parallel", stack_on=str(path)).eval()
    with torch.no_grad():
        assert torch.equal(second.score(batch), first.eval().score(batch))
    with pytest.raises(InputError, match=r"use its run's model\.backbone, model\.quantization"):
        make("adapter", stack_on=str(path), quantization=None)


def test_costs_count_the_weights_and_not_their_bytes(make: Any) -> None:
    trainer: Any = None
    counts = []
    for quantization in ("4bit", None):
        meter = CostMeter()
        meter.on_fit_start(trainer, make("lora", quantization=quantization))
        counts.append({key: value for key, value in meter.costs().items() if key.endswith("_parameters")})
    assert counts[0] == counts[1]
    assert counts[0]["total_parameters"] > counts[0]["trainable_parameters"] > 0


def test_a_budget_counts_the_weights_and_not_their_bytes(make: Any) -> None:
    four, full = (make(lambda **o: LoRATuning(budget="5%", **o), quantization=q) for q in ("4bit", None))
    assert four.findings["budget_parameters"] == full.findings["budget_parameters"]
    assert four.r == full.r
    assert holds_four_bits(four.backbone.model)
    assert not holds_four_bits(full.backbone.model)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (FullTuning, "FullTuning needs the weights themselves, which four bits do not hold; use LoRATuning"),
        (
            lambda **o: PeftTuning(peft.LoraConfig(init_lora_weights="pissa"), **o),
            "LORA needs the weights themselves, which four bits do not hold; use LoRATuning",
        ),
        (lambda **o: PeftTuning(peft.LoHaConfig(), **o), "four bits|four-bit layers; use LoraConfig"),
        (lambda **o: PeftTuning(peft.VeraConfig(r=4), **o), "four bits|four-bit layers; use LoraConfig"),
    ],
)
def test_what_needs_whole_weights_is_refused(make: Any, method: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(method)


def test_a_merge_is_refused_by_name(make: Any) -> None:
    with pytest.raises(InputError, match="cannot be merged into the backbone: it is held in four bits.*keep it beside"):
        make("lora").merged_model()


def test_a_tagger_takes_no_four_bits(tiny_encoder: Path) -> None:
    with pytest.raises(InputError, match="model.tuning.quantization is '4bit', .*; leave it out"):
        TokenClassification(backbone=str(tiny_encoder), tuning=LoRATuning(**FOUR))


def test_without_bitsandbytes_the_line_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    own = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *a: None if name == "bitsandbytes" else own(name, *a))
    with pytest.raises(InputError, match=r"needs bitsandbytes: pip install 'instructrec\[4bit\]', or leave"):
        LoRATuning(backbone="smollm2-135m-instruct", **FOUR)


def test_other_layers_are_not_taken_for_quantised_ones() -> None:
    assert widths(nn.Linear(3, 5)) == (3, 5)
