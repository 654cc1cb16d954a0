"""The tagger is tuned by every method: what trains, where it starts, who is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, VeraConfig

from callbacks.training_guard import load_trained
from datamodules.contract.errors import InputError
from datamodules.contract.objectives import ModelNeeds
from datamodules.datasets.movielens import MovieLens100K
from datamodules.protocol.rules import Protocol
from recmodels.backbones.encoder import why_not_packed
from recmodels.methods.adalora import AdaLoRATuning
from recmodels.methods.adapter import AdapterTuning
from recmodels.methods.base import InstructionRecommender
from recmodels.methods.full import FullTuning
from recmodels.methods.lora import LoRATuning
from recmodels.methods.partial import PartialTuning
from recmodels.methods.peft import PeftTuning
from recmodels.methods.prefix import PrefixTuning
from recmodels.methods.token_classification import TokenClassification
from recmodels.methods.zero_shot import ZeroShot
from tests.recmodels.backbones.encoders import build as build_encoder
from tests.recmodels.oracle import away, save

TAGGER = {"tagger.weight", "tagger.bias"}
TUNINGS: dict[str, tuple[Callable[..., InstructionRecommender], tuple[str, ...]]] = {
    "full": (FullTuning, ("",)),
    "lora": (lambda **o: LoRATuning(r=2, **o), (".lora_A.", ".lora_B.")),
    "houlsby": (lambda **o: AdapterTuning(bottleneck=3, **o), (".down.", ".up.")),
    "parallel": (lambda **o: AdapterTuning(bottleneck=3, placement="parallel", **o), (".down.", ".up.")),
    "prefix": (lambda **o: PrefixTuning(length=3, **o), (".prefix.",)),
    "top_layers": (lambda **o: PartialTuning(layers=1, **o), (".layer.1.",)),
    "head": (lambda **o: PartialTuning("head", **o), ()),
    "embeddings": (lambda **o: PartialTuning("embeddings", **o), (".word_embeddings.",)),
    "bias": (lambda **o: PartialTuning("bias", **o), (".bias",)),
    "norms": (lambda **o: PartialTuning("norms", **o), (".LayerNorm.",)),
    "gradual": (lambda **o: PartialTuning("gradual", **o), (".layer.",)),
    "ia3": (lambda **o: PeftTuning(IA3Config(target_modules=["key"], feedforward_modules=[]), **o), (".ia3_l.",)),
    "dora": (
        lambda **o: PeftTuning(LoraConfig(r=2, use_dora=True, target_modules=["query"]), **o),
        (".lora_A.", ".lora_B.", ".lora_magnitude_vector."),
    ),
}


@pytest.fixture
def make(tiny_encoder: Path) -> Callable[..., TokenClassification]:
    def build(tuning: str, folder: Path = tiny_encoder, **options: Any) -> TokenClassification:
        torch.manual_seed(3)
        model = TokenClassification(backbone=str(folder), dropout=0.0, tuning=TUNINGS[tuning][0](**options))
        model.configure_model()
        model.log = lambda *a, **k: None  # type: ignore[assignment]
        return model

    return build


@pytest.fixture
def batch(mini_data: Path, tiny_encoder: Path) -> Any:
    data = MovieLens100K(backbone=str(tiny_encoder), needs=ModelNeeds("tagged_text"), protocol=Protocol(negatives=5))
    data.setup()
    return next(iter(data.test_dataloader()))


@pytest.mark.parametrize("tuning", TUNINGS)
def test_the_tagger_and_what_the_method_declares_train_and_the_encoder_starts_as_it_was(make: Any, tuning: str) -> None:
    """By their names; that these move, and come back from a checkpoint, is a cell of the table of families."""
    model = make(tuning)
    trained, everything = set(model.trained()), dict(model.named_parameters())
    assert trained == TAGGER | {n for n in everything if any(part in n for part in TUNINGS[tuning][1])}
    assert model.findings.get("step0_score_difference", 1.0) == (1.0 if tuning == "prefix" else 0.0)


@pytest.mark.parametrize("tuning", TUNINGS)
def test_packed_texts_score_as_padded_ones_and_recomputed_gradients_are_the_same(
    make: Any, batch: Any, tuning: str
) -> None:
    model = away(make(tuning))
    assert not why_not_packed(model.encoder)
    again = away(make(tuning, gradient_checkpointing=True))
    for one in (model, again):
        one.train().training_step(batch, 0).backward()
    for name, value in model.trained().items():
        torch.testing.assert_close(again.trained()[name].grad, value.grad, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("tuning", ["lora", "houlsby", "parallel", "prefix", "top_layers", "norms"])
@pytest.mark.parametrize("family", ["modernbert", "roberta", "mpnet"])
def test_other_encoders_are_tuned_too_or_refused_by_name(make: Any, tmp_path: Path, family: str, tuning: str) -> None:
    torch.manual_seed(0)
    build_encoder(family).save_pretrained(tmp_path)
    if (family, tuning) == ("mpnet", "prefix"):
        with pytest.raises(InputError, match=r"\(mpnet\) takes no prefix: .*; use LoRATuning or AdapterTuning"):
            make(tuning, tmp_path)
        return
    model = away(make(tuning, tmp_path)).eval()
    token = torch.randint(3, 80, (1, 40))
    place = torch.arange(40)[None]
    arguments = (token, torch.zeros_like(token), place, torch.ones_like(token).bool())
    states = [replace(model.encoder, packed=packed).hidden_states(*arguments) for packed in (True, False)]
    if model.encoder.packed:
        torch.testing.assert_close(*states, atol=1e-4, rtol=0)
    gradients = torch.autograd.grad(
        states[1].square().sum(), [v for n, v in model.trained().items() if n not in TAGGER], allow_unused=True
    )
    assert all(gradient is not None and bool(gradient.abs().sum() > 0) for gradient in gradients)


def test_a_budget_counts_for_encoders_too(tiny_encoder: Path) -> None:
    model = TokenClassification(backbone=str(tiny_encoder), tuning=AdapterTuning(budget="3%"))
    model.configure_model()
    found = sum(value.numel() for name, value in model.trained().items() if name not in TAGGER)
    assert found == model.findings["budget_trained"]
    assert abs(found - model.findings["budget_parameters"]) < 0.5 * model.findings["budget_parameters"]


@pytest.mark.parametrize(
    ("tuning", "message"),
    [
        (ZeroShot, "model.tuning is ZeroShot, which trains nothing; PartialTuning with part=head"),
        (AdaLoRATuning, "model.tuning is AdaLoRATuning, which has a training_step of its own"),
    ],
)
def test_methods_with_a_loop_of_their_own_are_refused(tuning: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        TokenClassification(tuning=tuning())


def test_a_checkpoint_over_other_frozen_draws_is_refused(tiny_encoder: Path, tmp_path: Path) -> None:
    def made(key: int) -> TokenClassification:
        config = VeraConfig(r=4, target_modules=["query"], projection_prng_key=key)
        model = TokenClassification(backbone=str(tiny_encoder), tuning=PeftTuning(config))
        model.configure_model()
        return model

    path = save(made(0), tmp_path / "a.ckpt")
    load_trained(made(0), path)
    with pytest.raises(InputError, match="drew other frozen values; use its run's own config.yaml"):
        load_trained(made(1), path)
