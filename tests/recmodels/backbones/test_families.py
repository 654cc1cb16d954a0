"""Architectures of several families honour prompt trees, or are refused; FlexAttention follows the same rule."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.attention.flex_attention import AuxRequest

from datamodules.contract.errors import InputError
from recmodels.backbones.causal import CausalBackbone, load_causal, short_windows
from recmodels.engine.tree_attention import AttentionForest, bucket, compiled_flex, tree_attention
from tests.recmodels.backbones.families import CASES, FAMILIES
from tests.recmodels.oracle import engine_scores, plain_scores, separate_scores, tree_batch, tuned


@pytest.fixture(params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def eager_scores(backbone: CausalBackbone) -> torch.Tensor:
    """The oracle: transformers' own forward and eager attention, one sequence at a time."""
    backbone.model.set_attn_implementation("eager")
    scores = plain_scores(backbone.model, CASES)
    backbone.model.set_attn_implementation("prompt_tree")
    return scores


@pytest.mark.parametrize("row_tokens", [1, 16, 200])
def test_scores_equal_the_familys_own_forward(folder_of: Any, family: str, row_tokens: int) -> None:
    backbone = load_causal(str(folder_of(family)), "float32")
    backbone.model.eval()
    with torch.no_grad():
        got = engine_scores(backbone, tree_batch(CASES, row_tokens, 2048))
        torch.testing.assert_close(got, eager_scores(backbone), atol=1e-4, rtol=0)


def test_gradients_equal_the_familys_own_forward(folder_of: Any, family: str) -> None:
    backbone = load_causal(str(folder_of(family)), "float32", 0.0 if family in ("gpt2", "opt", "phi") else None)
    parameters = [p for p in backbone.model.parameters() if p.requires_grad]
    weights = torch.tensor([1.0, -0.5, 0.3, 2.0, -1.0, 0.7, 0.1])
    found = []
    for scores in (engine_scores(backbone, tree_batch(CASES, 200, 2048)), eager_scores(backbone)):
        gradients = torch.autograd.grad((scores * weights).sum(), parameters, allow_unused=True)
        found.append(torch.cat([g.flatten() for g in gradients if g is not None]))
    assert float((found[0] - found[1]).norm()) <= 1e-5 * float(found[1].norm())


@pytest.mark.parametrize("kind", ["lora", "adapter", "prefix"])
def test_tuned_families_score_as_separate_sequences(folder_of: Any, family: str, kind: str) -> None:
    # The padded oracle knows neither windows nor caps of attention.
    simple = {k: v for k, v in (("sliding_window", 512), ("attn_logit_softcapping", None)) if k in FAMILIES[family]}
    backbone = tuned(kind, folder_of(family, **simple)).backbone
    with torch.no_grad():
        got = engine_scores(backbone, tree_batch(CASES, 16, 2048))
        torch.testing.assert_close(got, separate_scores(backbone, CASES, "left"), atol=1e-4, rtol=0)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")  # meant so: the plain form
@pytest.mark.parametrize("kind", ["lora", "prefix"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "mistral"], indirect=True)
def test_flex_attention_follows_the_same_rule(
    folder_of: Any, family: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In eager form on a CPU; on a GPU the same function is compiled."""
    backbone = tuned(kind, folder_of(family)).backbone
    batch = tree_batch(CASES, 16, 2048)
    with torch.no_grad():
        expected = engine_scores(backbone, batch)
        seen: list[bool] = []

        def forest(*args: Any) -> AttentionForest:
            seen.append(True)
            return AttentionForest(*args, flex=True)

        monkeypatch.setattr("recmodels.backbones.causal.AttentionForest", forest)
        torch.testing.assert_close(engine_scores(backbone, batch), expected, atol=1e-4, rtol=0)
    assert seen


def test_padding_of_a_row_reaches_nobody_where_dropout_rules_out_flex_attention(folder_of: Any) -> None:
    """A GPU's rows are padded to few lengths, and its attention has no dropout in FlexAttention."""
    backbone, batch = load_causal(str(folder_of("llama")), "float32"), tree_batch(CASES, 16, 2048)
    size, padding = len(batch.token), torch.arange(3)
    whole = (batch.token, batch.end, batch.depth)
    longer = (
        nn.functional.pad(batch.token, (0, 3), value=7),
        torch.cat([batch.end, size + padding + 1]),
        nn.functional.pad(batch.depth, (0, 3)),
    )
    with torch.no_grad():
        expected, got = (backbone.hidden_states(*row, batch.trunk, batch.stretches) for row in (whole, longer))
    torch.testing.assert_close(got[:size], expected, atol=1e-5, rtol=1e-5)


def test_wide_stretches_go_through_sdpa_with_the_same_result(
    folder_of: Any, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = load_causal(str(folder_of(family)), "float32")
    backbone.model.eval()
    batch = tree_batch(CASES, 200, 2048)
    with torch.no_grad():
        expected = engine_scores(backbone, batch)
        monkeypatch.setattr("recmodels.engine.tree_attention.WIDEST", 3)
        torch.testing.assert_close(engine_scores(backbone, batch), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("block", [1, 3, 4])
def test_blocks_of_a_stretch_change_neither_scores_nor_gradients(
    folder_of: Any, family: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = load_causal(str(folder_of(family)), "float32")
    backbone.model.eval()
    batch, weight = tree_batch(CASES, 200, 2048), backbone.model.get_input_embeddings().weight
    found = []
    for size in (1000, block):
        monkeypatch.setattr("recmodels.engine.tree_attention.BLOCK", size)
        scores = engine_scores(backbone, batch)
        found.append((scores.detach(), *torch.autograd.grad(scores.sum(), weight)))
    torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=1e-4)


def test_attention_weights_have_dropout_in_training(folder_of: Any) -> None:
    backbone = load_causal(str(folder_of("gpt2")), "float32", dropout=0.5)
    backbone.model.train()
    batch = tree_batch(CASES, 200, 2048)
    assert not torch.equal(engine_scores(backbone, batch), engine_scores(backbone, batch))
    backbone.model.eval()
    assert torch.equal(engine_scores(backbone, batch), engine_scores(backbone, batch))


def test_a_proof_reaches_beyond_the_windows_and_leaves_them(folder_of: Any) -> None:
    backbone = load_causal(str(folder_of("gemma2", sliding_window=300)), "float32")
    layers = [layer.self_attn for layer in backbone.layers()]
    assert [layer.sliding_window for layer in layers] == [300, None]
    with short_windows(backbone.model):
        assert [layer.sliding_window for layer in layers] == [3, None]
    assert backbone.model.config.sliding_window == 300


def test_a_window_that_is_ignored_is_noticed(folder_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(*args: Any, sliding_window: int | None = None, **kwargs: Any) -> Any:
        del sliding_window
        return tree_attention(*args, **kwargs)

    from transformers import AttentionInterface

    monkeypatch.setitem(AttentionInterface._global_mapping, "prompt_tree", forgetful)
    with pytest.raises(InputError, match="does not honour prompt trees"):
        load_causal(str(folder_of("gemma2", sliding_window=300)), "float32")


@pytest.mark.parametrize(
    ("family", "changes"),
    [("bloom", {}), ("gpt_neo", {"attention_types": [[["global", "local"], 1]], "num_layers": 2})],
    indirect=["family"],
)
def test_a_family_with_positions_or_masks_of_its_own_is_refused_by_name(
    folder_of: Any, family: str, changes: dict[str, Any]
) -> None:
    """Bloom makes its positions from the mask; GPT-Neo's attention is not transformers' interface."""
    with pytest.raises(InputError, match=rf"\({family}\) (does not honour prompt trees|cannot be loaded)"):
        load_causal(str(folder_of(family, **changes)), "float32")


def test_few_lengths_on_a_gpu() -> None:
    sizes = {bucket(n) for n in range(1, 20_000)}
    assert len(sizes) < 50
    assert all(n <= bucket(n) < 1.13 * n + 128 and bucket(n) % 128 == 0 for n in range(1, 20_000, 7))


def test_every_length_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond eight, torch once gave up compiling and would have held all attention weights; here without a GPU."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    compiled_flex.cache_clear()
    limits = torch._dynamo.config
    with limits.patch(fail_on_recompile_limit_hit=True), torch.no_grad():
        attend = compiled_flex()
        for size in range(128, 11 * 128, 128):
            forest = AttentionForest(torch.full((size,), size), torch.arange(size), 1, [1, size], flex=True)
            query, key = torch.randn(1, 2, size, 16), torch.randn(1, 1, size, 16)
            rest: dict[str, Any] = {
                "block_mask": forest.block_mask(None),
                "enable_gqa": True,
                "return_aux": AuxRequest(lse=True),
            }
            made, _ = attend(query, key, key, **rest)
            assert made.shape == query.shape
    compiled_flex.cache_clear()
