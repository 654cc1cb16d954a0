"""Every exported recommender, found by itself: what it trains, what it saves, and that it comes back the same."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config

import recmodels
from callbacks.training_guard import GuardError, load_trained, verify_checkpoint
from datamodules.contract.batch import Batch
from datamodules.contract.errors import InputError
from datamodules.contract.objectives import ModelNeeds
from datamodules.datasets.movielens import MovieLens100K
from datamodules.protocol.rules import Protocol
from recmodels.base import IdentityError, NonFiniteError, Recommender
from tests.recmodels.oracle import save

NAMES = sorted(recmodels.__all__)
NETWORKS = [n for n in NAMES if getattr(recmodels, n).kind != "reference"]
TRAINED = [n for n in NETWORKS if getattr(recmodels, n).trains]
CAUSAL = [n for n in TRAINED if getattr(recmodels, n).batch_format == "prompt_tree"]
IDENTITY = (
    "LoRATuning",
    "AdaLoRATuning",
    "AdapterTuning",
    "FullTuning",
    "PartialTuning",
    "PeftTuning",
    "ZeroShot",
)  # promise the untuned output before the first step

ROOT = Path(__file__).resolve().parents[3]
Make = Callable[..., Recommender]


@pytest.fixture
def make(tiny_causal: Path, tiny_encoder: Path) -> Make:
    def build(name: str, **kwargs: Any) -> Recommender:
        cls = getattr(recmodels, name)
        folder = tiny_encoder if cls.batch_format == "tagged_text" else tiny_causal
        if name == "PeftTuning":  # all its methods are in test_peft.py
            kwargs = {"peft_config": IA3Config()} | kwargs
        torch.manual_seed(3)
        model: Recommender = cls(backbone=str(folder), **kwargs)
        model.configure_model()
        model.log = lambda *a, **k: None  # type: ignore[method-assign]
        return model

    return build


@pytest.fixture
def batches(mini_data: Path, tiny_causal: Path, tiny_encoder: Path) -> Callable[[str], tuple[Batch, Batch]]:
    def build(name: str) -> tuple[Batch, Batch]:
        form = getattr(recmodels, name).batch_format
        folder = tiny_encoder if form == "tagged_text" else tiny_causal
        data = MovieLens100K(backbone=str(folder), needs=ModelNeeds(form), protocol=Protocol(negatives=5))
        data.setup()
        return next(iter(data.train_dataloader())), next(iter(data.test_dataloader()))

    return build


def step(model: Recommender, batch: Batch, optimizer: torch.optim.Optimizer) -> float:
    model.train()
    loss = model.training_step(batch, 0)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return float(loss.detach())


@pytest.mark.parametrize("name", TRAINED)
def test_exactly_what_is_declared_moves(make: Make, batches: Any, name: str) -> None:
    model = make(name)
    train, _ = batches(name)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    trained = set(model.trained())
    optimizer = torch.optim.AdamW(model.trained().values(), lr=0.01)
    for _ in range(2):  # LoRA's A and an adapter's down move only once B and up are off zero
        step(model, train, optimizer)
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert trained
    assert moved <= trained, f"frozen parameters moved: {sorted(moved - trained)[:3]}"
    # An embedding row or layer without any gradient may stand still; whole tensors may not.
    assert trained - moved == set()


@pytest.mark.parametrize("name", TRAINED)
def test_trained_names_are_the_methods_own(make: Make, name: str) -> None:
    trained, everything = set(make(name).trained()), set(dict(make(name).named_parameters()))
    expected = {
        "FullTuning": everything,
        "LoRATuning": {n for n in everything if ".lora_A." in n or ".lora_B." in n},
        "AdapterTuning": {n for n in everything if ".down." in n or ".up." in n},
        "PrefixTuning": {n for n in everything if ".prefix." in n},
        "TokenClassification": everything,
    }
    assert trained == expected.get(name, trained)
    assert trained


@pytest.mark.parametrize("name", TRAINED)
def test_loss_falls_on_a_repeated_batch(make: Make, batches: Any, name: str) -> None:
    model = make(name, dropout=0.0)
    train, _ = batches(name)
    optimizer = torch.optim.AdamW(model.trained().values(), lr=0.01)
    losses = [step(model, train, optimizer) for _ in range(12)]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", IDENTITY)
def test_identity_at_the_start(make: Make, batches: Any, name: str) -> None:
    _, test = batches(name)
    with torch.no_grad():
        torch.testing.assert_close(
            make(name).eval().score(test), make("ZeroShot").eval().score(test), atol=1e-5, rtol=0
        )


@pytest.mark.parametrize("name", NETWORKS)
def test_a_promised_identity_is_declared_and_measured(make: Make, name: str) -> None:
    model = make(name)
    assert model.identity_at_start == (name in IDENTITY)
    tagger = name == "TokenClassification"  # its encoder starts as it was, under a new head
    assert model.findings == ({"step0_score_difference": 0.0} if name in IDENTITY or tagger else {})


def test_a_broken_identity_stops_the_run(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    original = recmodels.LoRATuning.tune

    def careless(self: Any, backbone: Any) -> None:
        original(self, backbone)
        for name, value in backbone.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(value)

    monkeypatch.setattr(recmodels.LoRATuning, "tune", careless)
    with pytest.raises(IdentityError, match="LoRATuning promises the untuned scores at first; they differ by"):
        make("LoRATuning")


def test_no_generation_setting_is_inherited(make: Make, tiny_causal: Path, tmp_path: Path) -> None:
    """A backbone's own sampling settings once made constrained beams collapse."""
    folder = tmp_path / "sampling"
    shutil.copytree(tiny_causal, folder)
    (folder / "generation_config.json").write_text('{"do_sample": true, "temperature": 9.0, "num_beams": 4}')
    model = recmodels.ZeroShot(backbone=str(folder))
    model.configure_model()
    inherited = model.backbone.model.generation_config
    assert inherited.to_diff_dict() == type(inherited)().to_diff_dict()
    free = [path for path in (ROOT / "recmodels").rglob("*.py") if re.search(r"\.generate\(", path.read_text())]
    assert not free, "scores come from forward passes; free generation would need its settings pinned here"


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_non_finite_gradient_stops_before_it_reaches_the_weights(
    make: Make, batches: Any, name: str, bad: float
) -> None:
    model = make(name)
    train, _ = batches(name)
    model.training_step(train, 0).backward()
    model.check_gradients()
    spoiled = [n for n, p in model.trained().items() if p.grad is not None][-1]
    grad = model.trained()[spoiled].grad
    assert grad is not None
    grad.view(-1)[-1] = bad
    with pytest.raises(NonFiniteError, match=f"non-finite gradient at step 0: {re.escape(spoiled)}"):
        model.check_gradients()


@pytest.mark.parametrize("name", TRAINED)
def test_checkpoint_holds_what_is_trained_and_gives_identical_scores(
    make: Make, batches: Any, name: str, tmp_path: Path
) -> None:
    model = make(name)
    train, test = batches(name)
    step(model, train, torch.optim.AdamW(model.trained().values(), lr=0.01))
    path = save(model, tmp_path / "a.ckpt")
    kept = torch.load(path, weights_only=True)["state_dict"]
    assert set(kept) == set(model.trained())
    fresh = make(name)
    with torch.no_grad():
        assert not torch.equal(fresh.eval().score(test), model.eval().score(test))
        load_trained(fresh, path)
        assert torch.equal(fresh.eval().score(test), model.eval().score(test))
    assert verify_checkpoint(model, path, test, torch.no_grad) == 0


@pytest.mark.parametrize("name", CAUSAL)
def test_foreign_checkpoints_are_refused(make: Make, name: str, tmp_path: Path) -> None:
    model = make(name)
    other = make("TokenClassification")
    with pytest.raises(InputError, match=f"is of TokenClassification, not {name}: use its run's own config.yaml"):
        load_trained(model, save(other, tmp_path / "other.ckpt"))
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    with pytest.raises(InputError, match="not written by instructrec"):
        load_trained(model, tmp_path / "foreign.ckpt")
    path = save(model, tmp_path / "own.ckpt")
    content = torch.load(path, weights_only=True)
    content["instructrec"]["base_checksum"] = "0" * 64
    torch.save(content, path)
    with pytest.raises(InputError, match="backbone weights"):
        load_trained(make(name), path)
    path = save(model, path)
    content = torch.load(path, weights_only=True)
    content["state_dict"].popitem()
    torch.save(content, path)
    with pytest.raises(InputError, match="does not fit"):
        load_trained(make(name), path)


def test_a_checkpoint_that_loses_a_tensor_is_noticed(make: Make, batches: Any, tmp_path: Path) -> None:
    model = make("LoRATuning")
    train, test = batches("LoRATuning")
    step(model, train, torch.optim.AdamW(model.trained().values(), lr=0.01))
    path = save(model, tmp_path / "a.ckpt")
    content = torch.load(path, weights_only=True)
    name = next(n for n in content["state_dict"] if "lora_B" in n)
    content["state_dict"][name] += 1
    torch.save(content, path)
    with pytest.raises((GuardError, NonFiniteError)):
        verify_checkpoint(model, path, test, torch.no_grad)


@pytest.mark.parametrize("name", NETWORKS)
def test_evaluation_has_no_dropout(make: Make, batches: Any, name: str) -> None:
    kwargs: dict[str, Any] = {
        "LoRATuning": {"lora_dropout": 0.5},
        "AdapterTuning": {"adapter_dropout": 0.5},
    }.get(name, {})
    model = make(name, **kwargs).eval()
    _, test = batches(name)
    with torch.no_grad():
        assert torch.equal(model.score(test), model.score(test))


def test_training_has_dropout(make: Make, batches: Any) -> None:
    model = make("LoRATuning", lora_dropout=0.5)
    train, _ = batches("LoRATuning")
    for value in model.trained().values():
        torch.nn.init.normal_(value, std=0.1)
    assert float(model.training_step(train, 0).detach()) != float(model.training_step(train, 0).detach())


@pytest.mark.parametrize("name", TRAINED)
def test_a_non_finite_loss_stops(make: Make, batches: Any, name: str) -> None:
    model = make(name)
    train, _ = batches(name)
    next(iter(model.trained().values())).data.fill_(math.nan)
    with pytest.raises(NonFiniteError, match="non-finite loss at step 0"):
        model.training_step(train, 0)


@pytest.mark.parametrize("name", NETWORKS)
def test_non_finite_scores_stop(make: Make, batches: Any, name: str) -> None:
    model = make(name).eval()
    _, test = batches(name)
    for value in model.parameters():
        value.data.fill_(math.nan)
    with pytest.raises(NonFiniteError, match="scores are not finite"):
        model.score(test)


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("LoRATuning", {"r": 0}, "at least 1"),
        ("LoRATuning", {"r": 17}, "above the width 16"),
        (
            "LoRATuning",
            {"targets": ["query"]},
            "model.targets names 'query', which matches nothing in backbone .*; the nearest is ",
        ),
        ("AdapterTuning", {"bottleneck": 0}, "at least 1"),
        ("PrefixTuning", {"length": 0}, "at least 1"),
        ("PrefixTuning", {"length": 512}, "context 512"),
        ("ZeroShot", {"warmup": 1.5}, "share of the steps"),
        ("ZeroShot", {"dropout": 0.1}, None),
    ],
)
def test_impossible_settings_are_refused(make: Make, name: str, kwargs: dict[str, Any], message: str | None) -> None:
    if message is None:
        make(name, **kwargs)  # this architecture has a dropout to set
        return
    with pytest.raises(InputError, match=message):
        make(name, **kwargs)


def test_a_missing_backbone_is_refused_before_anything_loads() -> None:
    with pytest.raises(InputError, match="nearest packaged one is 'smollm2-135m-instruct'"):
        recmodels.LoRATuning(backbone="smollm2-135m-instrukt")


def test_an_encoder_is_no_causal_backbone(tiny_encoder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    model = recmodels.ZeroShot(backbone=str(tmp_path))
    with pytest.raises(InputError, match="cannot be loaded as a causal model"):
        model.configure_model()


def test_tags_cover_the_recommended_candidate_only(make: Make, batches: Any) -> None:
    model = make("TokenClassification")
    _, test = batches("TokenClassification")
    tags = model.tags(test)  # type: ignore[operator]
    right = (test.relevance > 0).nonzero().flatten()
    assert torch.equal(tags == 1, torch.isin(test.branch, right))
    assert torch.equal(tags == -100, ~test.attention)


def test_random_is_independent_of_batching_and_uniform() -> None:
    from recmodels.baselines.simple import hash_uniform

    case, item = torch.arange(2000).repeat_interleave(5), torch.arange(5).repeat(2000)
    values = hash_uniform(case, item, 0)
    assert torch.equal(values[100:200], hash_uniform(case[100:200], item[100:200], 0))
    assert float(values.min()) >= 0
    assert float(values.max()) < 1
    counts = torch.histc(values, 20, 0, 1)
    assert float(((counts - 500) ** 2 / 500).sum()) < 45  # chi-square with 19 degrees, p > .001
    assert not torch.equal(values, hash_uniform(case, item, 1))
    for seed in (2, 3, 42, 1_700_000_000, 2**32 - 1):  # the largest that a run is seeded with
        others = hash_uniform(case, item, seed)
        assert 0 <= float(others.min()) < float(others.max()) < 1
        assert abs(float(others.mean()) - 0.5) < 0.05
        assert not torch.equal(others, values)
