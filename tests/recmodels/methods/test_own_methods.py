"""The methods that are ours on every family of backbones: what trains by name, and what the table of families lacks."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from callbacks.training_guard import load_trained
from datamodules.contract.errors import InputError
from recmodels.backbones.causal import CausalBackbone
from recmodels.backbones.loading import checkpoint_blocks
from recmodels.methods.adapter import AdapterTuning
from recmodels.methods.base import InstructionRecommender
from recmodels.methods.full import FullTuning
from recmodels.methods.lora import LoRATuning
from recmodels.methods.partial import PartialTuning
from recmodels.methods.prefix import PrefixTuning
from tests.recmodels.backbones import encoder_decoders as pairs
from tests.recmodels.backbones.families import CASES
from tests.recmodels.oracle import away, save, tree_batch

Make = Callable[..., InstructionRecommender]
FAMILIES = ("llama", "qwen3", "gemma", "gpt2", "opt", "t5", "bart")
BIASLESS = {"llama", "qwen3", "gemma", "t5"}
METHODS: dict[str, tuple[type[InstructionRecommender], dict[str, Any]]] = {
    "full": (FullTuning, {}),
    "lora": (LoRATuning, {"r": 2}),
    "houlsby": (AdapterTuning, {"bottleneck": 3}),
    "pfeiffer": (AdapterTuning, {"placement": "pfeiffer", "reduction_factor": 8, "activation": "relu"}),
    "parallel": (AdapterTuning, {"placement": "parallel", "bottleneck": 3, "scaling": "learned"}),
    "prefix": (PrefixTuning, {"length": 3}),
    "prefix_mlp": (PrefixTuning, {"length": 3, "reparameterisation": 5}),
    **{part: (PartialTuning, {"part": part, "layers": 1}) for part in ("top_layers", "head", "embeddings")},
    **{part: (PartialTuning, {"part": part}) for part in ("bias", "norms", "gradual")},
}
# What no file of configs/model sets, so that no cell of the table of families (test_support_matrix.py) holds it.
BESIDE_THE_TABLE = {"parallel", "prefix_mlp"}
# Where a family's layers are decides over these; the other methods know no layers.
EVERYWHERE = {"houlsby", "parallel", "prefix", "head", "norms", "bias"}
PAIRS = [
    (family, method)
    for family in FAMILIES
    for method in METHODS
    if not (method == "bias" and family in BIASLESS)
    if method in EVERYWHERE or family not in {"qwen3", "gemma", "opt"}
]
every_pair = pytest.mark.parametrize(("family", "method"), PAIRS)


@pytest.fixture
def make(folder_of: Any, tiny_t5: Path, tiny_bart: Path) -> Make:
    def build(family: str, method: str, **options: Any) -> InstructionRecommender:
        folder = {"t5": tiny_t5, "bart": tiny_bart}.get(family) or folder_of(family)
        cls, own = METHODS[method]
        torch.manual_seed(3)
        still = {"dropout": 0.0} if family in ("gpt2", "opt", "t5", "bart") else {}  # the others have none
        model = cls(**{"backbone": str(folder)} | still | own | options)
        model.configure_model()
        model.log = lambda *a, **k: None  # type: ignore[method-assign]
        return model

    return build


def batch_for(model: InstructionRecommender) -> Any:
    if isinstance(model.backbone, CausalBackbone):
        return tree_batch(CASES, 16, 2048)
    return pairs.tree_batch(CASES)


def names_of(model: InstructionRecommender, method: str) -> set[str]:
    """What the method is said to train, worked out from names alone."""
    everything = set(model.state_dict()) - {n for n, _ in model.named_buffers()}
    blocks = [n for n in everything if ".layers." in n or ".h." in n or ".block." in n]
    behind = {n for n in everything - set(blocks) if "norm" in n.lower() or ".ln_f." in n} - {
        n for n in everything if "embedding." in n
    }
    top = {
        n
        for n in blocks
        if ".1." in n.split("block" if ".block." in n else "layers" if ".layers." in n else ".h")[1][:3]
    }
    norms = {n for n in everything if "norm" in n.lower() or ".ln_" in n}
    return {
        "full": everything,
        "lora": {n for n in everything if ".lora_A." in n or ".lora_B." in n},
        "houlsby": {n for n in everything if ".down." in n or ".up." in n},
        "pfeiffer": {n for n in everything if ".down." in n or ".up." in n},
        "parallel": {n for n in everything if ".down." in n or ".up." in n or n.endswith(".scaling")},
        "prefix": {n for n in everything if ".prefix." in n},
        "prefix_mlp": {n for n in everything if ".prefix." in n},
        "top_layers": top | behind,
        "head": {n for n in everything if n.endswith("lm_head.weight")},
        "bias": {n for n in everything if n.endswith(".bias")},
        "norms": norms,
        "gradual": set(blocks) | behind,
    }[method]


@every_pair
def test_exactly_the_declared_parameters_train_and_the_start_is_the_untuned_backbone(
    make: Make, family: str, method: str
) -> None:
    """By their names; that these move, and no others, is a cell of the table of families."""
    model = make(family, method)
    trained = set(model.trained())
    shared = dict(model.named_parameters())  # a tied head goes by the name of the embeddings
    if method == "embeddings":
        assert len(trained) == 1
        assert model.trained().popitem()[1] is model.backbone.model.get_input_embeddings().weight
    else:
        assert trained == names_of(model, method) & set(shared)
    assert model.findings == ({} if method.startswith("prefix") else {"step0_score_difference": 0.0})


@pytest.mark.parametrize(("family", "method"), [pair for pair in PAIRS if pair[1] in BESIDE_THE_TABLE])
def test_what_is_in_no_config_moves_alone_and_comes_back_from_a_checkpoint(
    make: Make, family: str, method: str, tmp_path: Path
) -> None:
    """A trained scaling and a prefix from an MLP; the methods of configs/model are held to this in the table of families."""
    model = away(make(family, method)).train()
    batch = batch_for(model)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.trained().values(), lr=0.01)
    model.training_step(batch, 0).backward()
    optimizer.step()
    assert {n for n, p in model.named_parameters() if not torch.equal(p, before[n])} == set(model.trained())

    path = save(model.eval(), tmp_path / "a.ckpt")
    assert set(torch.load(path, weights_only=True)["state_dict"]) == set(model.trained())
    fresh = make(family, method).eval()
    with torch.no_grad():
        assert not torch.equal(fresh.score(batch), model.score(batch))
        load_trained(fresh, path)
        assert torch.equal(fresh.score(batch), model.score(batch))


@every_pair
def test_gradient_checkpointing_changes_no_number(make: Make, family: str, method: str) -> None:
    model = away(make(family, method)).train()
    batch = batch_for(model)
    calls: list[int] = []
    inside = next(m for m in model.backbone.layers()[-1].modules() if not list(m.children()))
    inside.register_forward_hook(lambda *_: calls.append(1))
    found = []
    for again in (False, True):
        if again:
            checkpoint_blocks(model.backbone)  # as `gradient_checkpointing` does when a model is built
        model.zero_grad()
        calls.clear()
        loss = model.training_step(batch, 0)
        loss.backward()
        gradients = torch.cat([p.grad.flatten() for p in model.trained().values() if p.grad is not None])
        found.append((loss.detach(), gradients, len(calls)))
    (plain, one, once), (recomputed, other, twice) = found
    assert float((plain - recomputed).abs()) <= 1e-6
    assert float((one - other).norm()) <= 1e-6 * float(one.norm())
    assert twice == 2 * once, "blocks were not computed again"


@pytest.mark.parametrize("asked", [False, True])
def test_gradient_checkpointing_is_what_the_option_asks_for(make: Make, asked: bool) -> None:
    model = make("llama", "lora", gradient_checkpointing=asked)
    found = [getattr(module, "gradient_checkpointing", None) for module in model.backbone.layers()]
    assert found == [asked] * 2


@pytest.mark.parametrize("family", FAMILIES)
def test_random_weights_are_the_same_in_every_run_and_nothing_of_the_pretrained(make: Make, family: str) -> None:
    known, drawn, again = make(family, "lora"), *(make(family, "lora", weights="random") for _ in range(2))
    batch = batch_for(known)
    assert drawn.base_checksum == again.base_checksum != known.base_checksum
    assert torch.equal(drawn.eval().score(batch), again.eval().score(batch))
    before, after = (dict(model.backbone.model.named_parameters()) for model in (known, drawn))
    assert before.keys() == after.keys()
    matrices = [name for name, value in before.items() if value.ndim == 2 and not value.requires_grad]
    assert matrices
    assert not any(torch.equal(before[name], after[name]) for name in matrices)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tied_head_is_parted_from_embeddings_that_stay(make: Make, family: str) -> None:
    model = make(family, "head")
    words, head = model.backbone.model.get_input_embeddings().weight, model.backbone.output_embeddings.weight
    assert words is not head
    assert not words.requires_grad
    assert head.requires_grad
    assert sum(v.numel() for v in model.trained().values()) == head.numel()


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_an_untied_head_survives_saving_as_a_whole_model(make: Make, family: str, tmp_path: Path) -> None:
    model = away(make(family, "head")).eval()
    model.backbone.model.save_pretrained(tmp_path)
    for file in Path(model.backbone_name).glob("*token*"):
        shutil.copy(file, tmp_path)
    other = make(family, "lora", backbone=str(tmp_path)).eval()
    batch = batch_for(model)
    with torch.no_grad():
        torch.testing.assert_close(other.score(batch), model.score(batch), atol=1e-5, rtol=0)


class Clock:
    """What a schedule asks a trainer."""

    estimated_stepping_batches = 12

    def __init__(self, step: int, epoch: int) -> None:
        self.global_step, self.current_epoch = step, epoch


@pytest.mark.parametrize("family", ["llama", "t5"])
@pytest.mark.parametrize("pace", ["steps", "epoch"])
def test_blocks_wait_for_their_turn(make: Make, family: str, pace: str) -> None:
    model = make(family, "gradual", pace=pace, unfreeze_until=0.5)
    assert isinstance(model, PartialTuning)
    blocks = {"llama": 2, "t5": 4}[family]
    assert [len(block) > 1 for block in model.frozen_blocks] == [True] * blocks
    declared = set(model.trained())
    optimizer = torch.optim.AdamW(model.trained().values(), lr=0.01, weight_decay=0.5)
    moved_at: dict[int, int] = {}
    for step in range(12):
        model.update_frozen(Clock(step, step // 2))
        assert set(model.trained()) == declared, "a checkpoint in between holds all that trains"
        before = [[value.detach().clone() for value in block] for block in model.frozen_blocks]
        optimizer.zero_grad()
        model.training_step(batch_for(model), 0).backward()
        optimizer.step()
        for number, (block, old) in enumerate(zip(model.frozen_blocks, before, strict=True)):
            if any(not torch.equal(a, b) for a, b in zip(block, old, strict=True)):
                moved_at.setdefault(number, step)
    interval = 2 if pace == "epoch" else 6 / blocks
    assert moved_at == {number: -(-number * interval // 1) for number in range(blocks)}


@pytest.mark.parametrize(
    ("family", "method", "options", "message"),
    [
        ("llama", "bias", {}, r"model.part is 'bias', and backbone .* \(llama\) has none; use 'norms'"),
        ("llama", "top_layers", {"layers": 3}, "model.layers is 3, and backbone .* has 2; lower it"),
        ("t5", "top_layers", {"layers": 3}, "has 2 and 2; lower it"),
        ("llama", "top_layers", {"layers": 0}, "at least 1"),
        ("llama", "gradual", {"unfreeze_until": 0.0}, "share of the steps"),
        ("llama", "pfeiffer", {"reduction_factor": 33}, "model.reduction_factor is 33, must be 1 to the width, 32"),
        ("llama", "pfeiffer", {"bottleneck": 4}, "both set the size"),
        ("llama", "pfeiffer", {"budget": "1%"}, "both set the size"),
        ("llama", "houlsby", {"adapter_dropout": 1.0}, "0 to below 1"),
        ("bart", "prefix", {"length": 512}, "model.length is 512, the backbone's context 512; at most 511 works"),
        ("llama", "prefix", {"reparameterisation": -1}, "at least 0"),
        ("llama", "gradual", {"budget": "1%"}, "no size that a budget could set"),
        (
            "llama",
            "lora",
            {"weights": "random", "quantization": "4bit"},
            "only pretrained weights are held in four bits",
        ),
    ],
)
def test_impossible_settings_are_refused(
    make: Make, family: str, method: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        make(family, method, **options)


def test_a_model_that_cannot_checkpoint_is_refused(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import LlamaPreTrainedModel

    monkeypatch.setattr(LlamaPreTrainedModel, "supports_gradient_checkpointing", False)
    with pytest.raises(InputError, match="knows no gradient checkpointing; leave"):
        make("llama", "lora", gradient_checkpointing=True)


def test_adapters_scale_and_drop(make: Make) -> None:
    plain, scaled = (away(make("llama", "houlsby", scaling=s, adapter_dropout=0.5)).eval() for s in (1.0, 0.0))
    batch = batch_for(plain)
    with torch.no_grad():
        untuned = make("llama", "houlsby").eval().score(batch)
        assert torch.equal(scaled.score(batch), untuned), "scaled by nothing, adapters add nothing"
        assert not torch.equal(plain.score(batch), untuned)
        assert torch.equal(plain.score(batch), plain.score(batch)), "no dropout in evaluation"
        assert not torch.equal(plain.train()(batch), plain(batch)), "dropout in training"


def test_a_parallel_adapter_reads_what_the_feed_forward_reads(make: Make) -> None:
    """Against the definition, worked out from the block's own modules."""
    model = away(make("llama", "parallel")).eval()
    block: Any = model.backbone.layers()[0]
    states = torch.randn(1, 4, 32)
    adapted = block.mlp.down_proj
    with torch.no_grad():
        own = adapted.layer(block.mlp.act_fn(block.mlp.gate_proj(states)) * block.mlp.up_proj(states))
        change = adapted.up(torch.nn.functional.gelu(adapted.down(states))) * adapted.scaling
        torch.testing.assert_close(block.mlp(states), own + change)
