"""Costs measured after a run: FLOPs, latency, merging, forgetting."""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path

import pytest
import torch

import recmodels
from benchmarks.runs.costs import measure, merged_network, perplexity, step_flops, unlogged, with_network
from datamodules.datasets.movielens import MovieLens100K
from datamodules.protocol.rules import Protocol
from recmodels.backbones.causal import load_causal
from recmodels.methods.base import InstructionRecommender

IDS = [[3, 5, 1, 7, 9, 20, 31], [8, 2, 4]]


@pytest.fixture
def data(mini_data: Path, tiny_causal: Path) -> MovieLens100K:
    made = MovieLens100K(backbone=str(tiny_causal), protocol=Protocol(negatives=5))
    made.setup()
    return made


def build(name: str, folder: Path, **kwargs: object) -> InstructionRecommender:
    torch.manual_seed(3)
    model: InstructionRecommender = getattr(recmodels, name)(backbone=str(folder), **kwargs)
    model.configure_model()
    for value in model.trained().values():  # as if trained
        torch.nn.init.normal_(value, std=0.1)
    return model


def test_perplexity_is_that_of_the_models_own_forward(tiny_causal: Path) -> None:
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(tiny_causal)
    losses = [
        plain(input_ids=torch.tensor([ids]), labels=torch.tensor([ids])).loss.item() * (len(ids) - 1) for ids in IDS
    ]
    expected = torch.tensor(sum(losses) / 8).exp().item()

    backbone = load_causal(str(tiny_causal), "float32")
    backbone.model.eval()
    assert perplexity(backbone, IDS) == pytest.approx(expected, rel=1e-5)


def test_flops_are_those_of_the_matrix_products(data: MovieLens100K, tiny_causal: Path) -> None:
    """Forward and backward of a frozen backbone cost 4 flops a weight and token, of a trained one 6."""
    batch = next(iter(data.train_dataloader()))
    found = {}
    for name in ("PrefixTuning", "FullTuning"):
        model = build(name, tiny_causal)
        with unlogged(model):
            found[name] = step_flops(model, batch, contextlib.nullcontext)
            again = step_flops(model, batch, contextlib.nullcontext)
        assert found[name] == again
        assert all(value.grad is None for value in model.trained().values())
        assert "log" not in vars(model)
    linear = sum(layer.weight.numel() for layer in model.backbone.linear_layers().values())
    # The weights' own gradients: 2 flops a weight and token, in the layers and, at labelled tokens, in the head.
    least = 2 * linear * batch.tokens
    head = 2 * model.backbone.model.get_output_embeddings().weight.numel() * len(batch.label_token)
    assert found["FullTuning"] - found["PrefixTuning"] == pytest.approx(least + head, rel=0.25)
    assert found["PrefixTuning"] > 4 * linear * batch.tokens * 0.9


def test_a_merged_copy_gives_the_same_scores_and_leaves_the_model_alone(data: MovieLens100K, tiny_causal: Path) -> None:
    model = build("LoRATuning", tiny_causal).eval()
    batch = next(iter(data.test_dataloader()))
    with torch.no_grad():
        before = model.score(batch)
        merged = merged_network(model, contextlib.nullcontext)
        with with_network(model, merged):
            together = model.score(batch)
        after = model.score(batch)

    assert torch.equal(before, after)
    assert (before - together).abs().max() < 1e-4
    assert not [name for name, _ in merged.named_parameters() if "lora" in name]
    untuned = build("ZeroShot", tiny_causal).eval()
    assert (untuned.score(batch) - together).abs().max() > 0.01, "nothing was merged"


@pytest.mark.parametrize("name", ["AdapterTuning", "PrefixTuning"])
def test_what_cannot_be_merged_is_not(name: str, tiny_causal: Path) -> None:
    assert merged_network(build(name, tiny_causal), contextlib.nullcontext) is None


def test_all_costs_of_a_tuned_model(data: MovieLens100K, tiny_causal: Path) -> None:
    model = build("LoRATuning", tiny_causal)
    waited, state = dict(data.waited), torch.get_rng_state()

    costs = measure(model, data, contextlib.nullcontext)

    assert set(costs) == {
        "train_flops_per_token",
        "sample_flops",
        "latency_seconds",
        "merged_latency_seconds",
        "merged_score_difference",
        "perplexity_before",
        "perplexity_after",
    }
    assert costs["perplexity_before"] != costs["perplexity_after"]
    assert min(costs.values()) >= 0
    assert costs["latency_seconds"] > 0
    assert data.waited == waited
    assert torch.equal(torch.get_rng_state(), state), "measuring draws random numbers"


def test_an_untuned_model_has_forgotten_nothing(data: MovieLens100K, tiny_causal: Path) -> None:
    costs = measure(build("ZeroShot", tiny_causal), data, contextlib.nullcontext)

    assert costs["perplexity_before"] == costs["perplexity_after"]
    assert "train_flops_per_token" not in costs


@pytest.mark.parametrize("name", ["ZeroShot", "LoRATuning", "FullTuning"])
def test_first_places_that_rounding_changed_are_counted_and_weights_come_back(
    name: str, mini_data: Path, tiny_causal: Path
) -> None:
    """Against both rankings made apart: in bfloat16 and, by a model whose weights were converted, in float32."""
    halved = functools.partial(torch.autocast, "cpu", dtype=torch.bfloat16)
    data = MovieLens100K(backbone=str(tiny_causal), protocol=Protocol(candidates="full", exclude_seen=False))
    data.setup()
    model = build(name, tiny_causal).eval()
    for value in model.parameters():  # large enough that rounding moves some
        value.data = value.data.mul(8) if value.requires_grad else value.data.mul(8).bfloat16()
    before = {key: value.clone() for key, value in model.state_dict().items()}

    costs = measure(model, data, halved)

    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert {key: value.dtype for key, value in model.state_dict().items()} == {k: v.dtype for k, v in before.items()}
    users, loader = int(costs["rounded_users"]), data.evaluation_loader("test")
    batches = [loader.collate_fn([loader.dataset[row]]) for row in range(len(loader.dataset))]
    assert users == len(batches)
    with torch.inference_mode():
        with halved():
            rounded = [model.score(batch) for batch in batches]
        model.float()
        exact = [model.score(batch) for batch in batches]
    moved = sum(int(a.argmax() != b.argmax()) for a, b in zip(rounded, exact, strict=True))
    assert moved > 0 or name == "FullTuning", "the sides do not differ, so that nothing is tested"
    assert costs["rounded_first_places"] == moved / users
