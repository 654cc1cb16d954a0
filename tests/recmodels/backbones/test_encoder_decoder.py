"""Answers decoded as trees score as separate pairs of prompt and answer do, and so do their gradients."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.__main__ import main
from callbacks.training_guard import load_trained, verify_checkpoint
from datamodules.batching.encoder_decoder import EncoderDecoderCollator
from datamodules.contract.errors import InputError
from datamodules.contract.objectives import NAMED_NEEDS, ModelNeeds
from datamodules.datasets.movielens import MovieLens100K
from datamodules.protocol.rules import Protocol
from recmodels.backbones.causal import CausalBackbone
from recmodels.backbones.encoder_decoder import EncoderDecoderBackbone, load_backbone, prove_answer_trees
from recmodels.engine.answer_attention import bias_at
from recmodels.methods.adapter import AdapterTuning
from recmodels.methods.base import InstructionRecommender
from recmodels.methods.lora import LoRATuning
from recmodels.methods.zero_shot import ZeroShot
from tests.recmodels.backbones.encoder_decoders import FAMILIES, KINDS, separate_scores, tree_batch, tuned
from tests.recmodels.oracle import CASE_LISTS, Case, check_batching, save


@pytest.fixture(scope="module")
def folders(tiny_t5: Path, tiny_bart: Path) -> dict[str, Path]:
    return {"t5": tiny_t5, "bart": tiny_bart}


@pytest.fixture(scope="module")
def models(folders: dict[str, Path]) -> dict[tuple[str, str], InstructionRecommender]:
    return {(family, kind): tuned(kind, folders[family]) for family in FAMILIES for kind in KINDS}


@settings(max_examples=12, deadline=None)
@given(
    cases=CASE_LISTS.map(lambda cases: [*cases, cases[0]]),  # one prompt twice
    row_tokens=st.sampled_from([1, 20, 200]),
    answer_tokens=st.sampled_from([3, 2048]),
    extra=st.sampled_from([0, 3]),
)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_equal_separate_pairs(
    models: dict[tuple[str, str], InstructionRecommender],
    family: str,
    kind: str,
    cases: list[Case],
    row_tokens: int,
    answer_tokens: int,
    extra: int,
) -> None:
    backbone = models[family, kind].backbone
    with torch.no_grad():
        got = backbone.log_likelihood(tree_batch(cases, row_tokens, answer_tokens))
        torch.testing.assert_close(got, separate_scores(backbone, cases, extra), atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("row_tokens", [1, 200])
def test_gradients_equal_those_of_separate_pairs(
    models: dict[tuple[str, str], InstructionRecommender], family: str, kind: str, row_tokens: int
) -> None:
    model = models[family, kind]
    # Answers longer than T5's exact buckets, so that positions matter.
    cases: list[Case] = [
        ([5, 6, 7], [[8, 9, 10], [8, 11, *range(20, 29)], [12]]),
        ([5, 6, 9, 4], [[8], [13, 14, 15]]),
        ([5, 6, 7], [[8, 9, 16]]),
    ]
    parameters = list(model.trained().values())
    weights = torch.tensor([1.0, -0.5, 0.3, 2.0, -1.0, 0.7])
    batch = tree_batch(cases, row_tokens)
    got = torch.autograd.grad((model.backbone.log_likelihood(batch) * weights).sum(), parameters)
    expected = torch.autograd.grad((separate_scores(model.backbone, cases) * weights).sum(), parameters)
    one, other = (torch.cat([g.flatten() for g in gradient]) for gradient in (got, expected))
    assert float((one - other).norm()) <= 1e-5 * float(other.norm())
    assert all(bool(g.abs().sum() > 0) for g in got), "every trained tensor of encoder and decoder takes part"


@pytest.mark.parametrize("family", FAMILIES)
def test_decoding_in_turn_changes_nothing(
    models: dict[tuple[str, str], InstructionRecommender], family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = models[family, "lora"].backbone
    batch = tree_batch([([5, 6, 7], [[8, 9, n] for n in range(10, 40)]), ([9], [[3]])], answer_tokens=12)
    decoded: list[int] = []
    handle = backbone.model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: decoded.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    encoded: list[int] = []
    other = backbone.model.get_encoder().register_forward_hook(lambda *a: encoded.append(1))
    with torch.no_grad():
        whole = backbone.log_likelihood(batch)
        assert len(decoded) == 1
        monkeypatch.setattr(EncoderDecoderBackbone, "decoded_tokens", 10)
        torch.testing.assert_close(backbone.log_likelihood(batch), whole, atol=1e-5, rtol=0)
    assert len(decoded) > 3
    assert max(decoded[1:]) <= 10
    assert encoded == [1, 1]
    handle.remove()
    other.remove()


@pytest.mark.parametrize("family", FAMILIES)
def test_another_prompt_in_the_row_changes_nothing(
    models: dict[tuple[str, str], InstructionRecommender], family: str
) -> None:
    backbone = models[family, "full"].backbone
    first: Case = ([5, 6, 7, 8], [[9, 10], [9, 11]])
    with torch.no_grad():
        made = [
            backbone.log_likelihood(tree_batch([first, ([n, n + 1, n + 2, 4], [[n, 12, n]])]))[:2] for n in (20, 40)
        ]
    assert torch.equal(*made)


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_do_not_depend_on_batching(folders: dict[str, Path], mini_data: Path, family: str) -> None:
    check_batching(tuned("lora", folders[family]), folders[family])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_full_catalogue_is_ranked_in_parts(
    models: dict[tuple[str, str], InstructionRecommender],
    folders: dict[str, Path],
    mini_data: Path,
    family: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = []
    for answer_tokens, decoded_tokens in ((2048, 16384), (30, 64)):
        monkeypatch.setattr(EncoderDecoderCollator, "answer_tokens", answer_tokens)
        monkeypatch.setattr(EncoderDecoderBackbone, "decoded_tokens", decoded_tokens)
        protocol = Protocol(candidates="full", test_users=4)
        data = MovieLens100K(backbone=str(folders[family]), protocol=protocol)
        with torch.no_grad():
            found.append(torch.cat([models[family, "full"].score(batch) for batch in data.test_dataloader()]))
    assert len(found[0]) > 4 * 20
    torch.testing.assert_close(*found, atol=1e-4, rtol=0)


# --- loading --------------------------------------------------------------------------------------------------------


def test_the_configuration_chooses_the_kind(folders: dict[str, Path], tiny_causal: Path) -> None:
    for family in FAMILIES:
        assert isinstance(load_backbone(str(folders[family]), "float32"), EncoderDecoderBackbone)
        assert load_backbone(str(folders[family]), "bfloat16").model.dtype == torch.bfloat16
    assert isinstance(load_backbone(str(tiny_causal), "float32"), CausalBackbone)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_decoder_that_keeps_its_own_positions_is_refused(
    folders: dict[str, Path], family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import recmodels.engine.answer_attention as engine

    backbone = load_backbone(str(folders[family]), "float32")
    prove_answer_trees(backbone)  # type: ignore[arg-type]
    monkeypatch.setattr(engine, "bias_at", lambda bias, depth: bias)
    monkeypatch.setattr(engine.nn.functional, "embedding", embedding_by_place)
    with pytest.raises(InputError, match="does not honour trees of answers: branch scores differ by"):
        prove_answer_trees(backbone)  # type: ignore[arg-type]


def embedding_by_place(index: torch.Tensor, table: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """An embedding that ignores the depths it is given; only a table of a row's own positions is so small."""
    if index.ndim == 2 and len(table) == index.shape[1]:
        return table.expand(*index.shape, -1)
    return table[index]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda config: config.pop("decoder_start_token_id"), "no decoder_start_token_id"),
        (lambda config: config.update(decoder_start_token_id=None), "no decoder_start_token_id"),
        (lambda config: config.update(model_type="longt5"), "does not honour trees of answers"),
        (lambda config: config.update(model_type="vit"), "cannot be loaded as an encoder-decoder model"),
    ],
)
def test_what_cannot_be_an_encoder_decoder_is_one_line(
    tiny_t5: Path, tmp_path: Path, spoil: Callable[[dict[str, Any]], Any], message: str
) -> None:
    config = json.loads((tiny_t5 / "config.json").read_text())
    spoil(config)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").symlink_to(tiny_t5 / "model.safetensors")
    with pytest.raises(InputError, match=message) as error:
        load_backbone(str(tmp_path), "float32")
    assert "\n" not in str(error.value)


def test_a_bias_is_read_at_the_depths() -> None:
    by_distance = torch.randn(3, 6)
    place = torch.arange(6)
    bias = by_distance[:, (place[:, None] - place).clamp(min=0)][None]
    depth = torch.tensor([[0, 1, 2, 1, 2, 3]])
    read = bias_at(bias, depth)
    for i, j in ((5, 0), (5, 3), (4, 4), (2, 1)):
        assert torch.equal(read[0, :, i, j], by_distance[:, depth[0, i] - depth[0, j]])


# --- tuning ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def batches(mini_data: Path, folders: dict[str, Path]) -> Callable[[str], tuple[Any, Any]]:
    def build(family: str) -> tuple[Any, Any]:
        data = MovieLens100K(backbone=str(folders[family]), protocol=Protocol(negatives=5), batch_size=2)
        data.setup()
        return next(iter(data.train_dataloader())), next(iter(data.test_dataloader()))

    return build


def fresh(kind: str, folder: Path) -> InstructionRecommender:
    torch.manual_seed(3)
    model = KINDS[kind](folder)
    model.configure_model()
    model.log = lambda *a, **k: None  # type: ignore[method-assign]
    return model


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_variant_starts_as_the_backbone_trains_its_own_and_comes_back(
    folders: dict[str, Path], batches: Any, family: str, kind: str, tmp_path: Path
) -> None:
    train, test = batches(family)
    model, untuned = fresh(kind, folders[family]), ZeroShot(backbone=str(folders[family]))
    untuned.configure_model()
    with torch.no_grad():
        same = torch.allclose(model.eval().score(test), untuned.eval().score(test), atol=1e-5, rtol=0)
    assert same == model.identity_at_start == (kind != "prefix")

    everything, trained = dict(model.named_parameters()), set(model.trained())
    adapter, lora = (".down.", ".up."), (".lora_A.", ".lora_B.")
    own = {"full": ("",), "lora": lora, "adapter": adapter, "parallel": adapter, "prefix": (".prefix.",)}[kind]
    assert trained == {name for name in everything if any(part in name for part in own)}
    assert any(".encoder." in name for name in trained)
    assert any(".decoder." in name for name in trained)
    assert not any("lm_head" in name for name in trained)

    before = {name: value.detach().clone() for name, value in everything.items()}
    optimizer = torch.optim.AdamW(model.trained().values(), lr=0.01)

    def loss_without_dropout() -> float:
        with torch.no_grad():
            return float(model.eval().training_step(train, 0))

    at_start = loss_without_dropout()
    model.train()
    for _ in range(6):
        loss = model.training_step(train, 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss_without_dropout() < at_start
    assert {name for name, value in everything.items() if not torch.equal(value, before[name])} == trained

    save(model, tmp_path / "a.ckpt")
    assert set(torch.load(tmp_path / "a.ckpt", weights_only=True)["state_dict"]) == trained
    again = fresh(kind, folders[family]).eval()
    with torch.no_grad():
        assert not torch.equal(again.score(test), model.eval().score(test))
        load_trained(again, tmp_path / "a.ckpt")
        assert torch.equal(again.score(test), model.score(test))
    assert verify_checkpoint(model, tmp_path / "a.ckpt", test, torch.no_grad) == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_stand_in_every_block_of_both_stacks(folders: dict[str, Path], family: str) -> None:
    for placement, count in (("houlsby", 2), ("pfeiffer", 1)):
        model = AdapterTuning(backbone=str(folders[family]), bottleneck=3, placement=placement)  # type: ignore[arg-type]
        model.configure_model()
        downs = [name for name in model.trained() if name.endswith(".down.weight")]
        assert len(downs) == count * 4
        assert not any("EncDecAttention" in name or "encoder_attn" in name for name in downs)


def test_the_head_is_no_target_of_lora(folders: dict[str, Path]) -> None:
    for family in FAMILIES:
        with pytest.raises(InputError, match="matches nothing in backbone"):
            LoRATuning(backbone=str(folders[family]), targets=["lm_head"]).configure_model()


@pytest.mark.parametrize("objective", ["listwise", "yes_no"])
def test_every_objective_trains(folders: dict[str, Path], mini_data: Path, objective: str) -> None:
    model = LoRATuning(backbone=str(folders["t5"]), objective=objective, length_normalised=True)  # type: ignore[arg-type]
    model.configure_model()
    model.log = lambda *a, **k: None  # type: ignore[method-assign]
    data = MovieLens100K(
        backbone=str(folders["t5"]),
        task="like" if objective == "yes_no" else "matching",
        protocol=Protocol(negatives=5),
        needs=ModelNeeds("prompt_tree", *astuple(NAMED_NEEDS[objective])),
    )
    data.setup()
    loss = model.training_step(next(iter(data.train_dataloader())), 0)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(value.grad is not None for value in model.trained().values())


def test_bfloat16_scores_are_near(folders: dict[str, Path]) -> None:
    cases: list[Case] = [([5, 6, 7], [[8, 9, 10], [8, 11]]), ([5, 6, 9, 4], [[8], [13, 14, 15]])]
    for family in FAMILIES:
        whole, half = (load_backbone(str(folders[family]), p) for p in ("float32", "bfloat16"))  # type: ignore[arg-type]
        with torch.no_grad():
            exact = whole.log_likelihood(tree_batch(cases))
            torch.testing.assert_close(half.log_likelihood(tree_batch(cases)), exact, rtol=0.03, atol=0.3)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                torch.testing.assert_close(whole.log_likelihood(tree_batch(cases)), exact, rtol=0.03, atol=0.3)


def test_a_batch_without_a_second_answer_is_enough() -> None:
    batch = tree_batch([([5], [[6]])])
    assert batch.token.shape == (1, 1)
    assert replace(batch, tokens=0).label_token.tolist() == [6]


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_lora_on_t5_through_the_command_line(tiny_t5: Path, mini_data: Path, tmp_path: Path) -> None:
    root, out = Path(__file__).resolve().parents[3], tmp_path / "run"
    configs = ["-c", f"{root}/configs/model/lora.yaml", "-c", f"{root}/configs/data/ml_100k.yaml"]
    small = ["--trainer.max_steps=2", "--trainer.val_check_interval=1", "--data.protocol.negatives=6"]
    code = main(["fit", *configs, "--out", str(out), f"--model.backbone={tiny_t5}", *small, "--trainer.logger=false"])
    assert code == 0
    record = json.loads((out / "record.json").read_text())
    assert record["status"] == "finished"
    assert record["guards"]["reloaded_score_difference"] == 0
    assert record["guards"]["frozen_unchanged"] is True
    assert 0 < record["costs"]["test_tokens"] < record["costs"]["test_tokens_unshared"]
