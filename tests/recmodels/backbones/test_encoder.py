"""Packed texts are tagged as each text alone is, gradients too; an encoder that cannot do so reads padded rows."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.batching.loaders import LoaderOptions
from datamodules.contract.batch import TaggedTextBatch
from datamodules.contract.errors import InputError
from datamodules.contract.objectives import ModelNeeds
from datamodules.datasets.movielens import MovieLens100K
from datamodules.protocol.rules import Protocol
from recmodels.backbones.encoder import TextEncoder, load_encoder, why_not_packed
from recmodels.engine.answer_attention import segment_mask
from recmodels.methods.token_classification import TokenClassification
from tests.datamodules.options import grouped
from tests.recmodels.backbones.encoders import PACKED, PADDED, build, rows_of
from tests.recmodels.oracle import check_same_scores, scores_by_item


@pytest.fixture(scope="module")
def encoders() -> dict[str, TextEncoder]:
    made = {}
    for family in (*PACKED, *PADDED):
        torch.manual_seed(0)
        model = build(family).eval()
        made[family] = replace(one := TextEncoder(model, family), packed=not why_not_packed(one))
    return made


def alone(encoder: TextEncoder, rows: list[list[list[int]]]) -> torch.Tensor:
    """The oracle: the model's own call on every text without padding, without masks, without positions."""
    return torch.cat(
        [encoder.model(input_ids=torch.tensor([text])).last_hidden_state[0] for texts in rows for text in texts]
    )


texts_strategy = st.lists(
    st.lists(st.lists(st.integers(3, 80), min_size=1, max_size=24), min_size=1, max_size=4), min_size=1, max_size=3
)


@settings(max_examples=20, deadline=None)
@given(rows=texts_strategy)
@pytest.mark.parametrize("family", [*PACKED, *PADDED])
def test_packed_texts_have_the_states_of_each_alone(
    encoders: dict[str, TextEncoder], family: str, rows: list[list[list[int]]]
) -> None:
    token, segment, position, attention = rows_of(rows)
    with torch.no_grad():
        got = encoders[family].hidden_states(token, segment, position, attention)
        torch.testing.assert_close(got[attention], alone(encoders[family], rows), atol=1e-4, rtol=0)
    assert torch.isfinite(got).all()


@pytest.mark.parametrize("family", [*PACKED, *PADDED])
def test_gradients_are_those_of_each_alone(encoders: dict[str, TextEncoder], family: str) -> None:
    encoder = encoders[family]
    rows = [[list(range(5, 30)), [7, 8, 9], [4]], [[10, 3, 50], list(range(40, 60))]]
    parameters = [p for p in encoder.model.parameters() if p.requires_grad]
    token, segment, position, attention = rows_of(rows)
    torch.manual_seed(1)
    weights = torch.randn(int(attention.sum()), 32)
    got_states = encoder.hidden_states(token, segment, position, attention)[attention]
    got = torch.autograd.grad((got_states * weights).sum(), parameters)
    expected = torch.autograd.grad((alone(encoder, rows) * weights).sum(), parameters)
    one, other = (torch.cat([g.flatten() for g in gradient]) for gradient in (got, expected))
    assert float((one - other).norm()) <= 1e-5 * float(other.norm())


@pytest.mark.parametrize("family", [*PACKED, *PADDED])
def test_another_text_in_the_row_changes_nothing(encoders: dict[str, TextEncoder], family: str) -> None:
    first = [5, 6, 7, 8, 9]
    with torch.no_grad():
        made = [encoders[family].hidden_states(*rows_of([[first, [n] * 9]]))[0, : len(first)] for n in (20, 40)]
    assert torch.equal(*made)


def test_who_packs_and_who_pads(encoders: dict[str, TextEncoder]) -> None:
    assert {family for family, encoder in encoders.items() if encoder.packed} == set(PACKED)


def test_a_mask_that_forgets_the_local_window_is_found_out() -> None:
    torch.manual_seed(0)
    model = build("modernbert")
    assert not why_not_packed(TextEncoder(model, "tiny"))
    original = model.forward

    def forgetful(*args: Any, **kwargs: Any) -> Any:
        if isinstance(kwargs["attention_mask"], dict):
            kwargs["attention_mask"] = kwargs["attention_mask"]["full_attention"]
        return original(*args, **kwargs)

    model.forward = forgetful
    assert "hidden states differ by" in why_not_packed(TextEncoder(model, "tiny"))


def test_positions_that_go_on_through_the_row_are_found_out() -> None:
    torch.manual_seed(0)
    model = build("bert")
    original = model.forward
    model.forward = lambda *args, position_ids=None, **kwargs: original(*args, **kwargs)
    assert "hidden states differ by" in why_not_packed(TextEncoder(model, "tiny"))


def test_a_mask_lets_a_text_see_itself_only() -> None:
    segment = torch.tensor([[2, 2, 5, 5, 5, 6]])
    mask = segment_mask(segment, segment)[0, 0]
    assert [[j for j in range(6) if mask[i, j]] for i in range(6)] == [[0, 1]] * 2 + [[2, 3, 4]] * 3 + [[5]]


# --- the tagger on real rows ----------------------------------------------------------------------------------------


def test_loading_says_why_rows_are_padded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for family in ("roberta", "mpnet"):
        torch.manual_seed(0)
        build(family).save_pretrained(tmp_path / family)
    with caplog.at_level(logging.WARNING, logger="recmodels.backbones.encoder"):
        assert load_encoder(str(tmp_path / "roberta")).packed
        assert not caplog.messages
        assert not load_encoder(str(tmp_path / "mpnet"), dropout=0.0).packed
    [message] = caplog.messages
    assert "(mpnet) reads padded rows instead of packed ones: hidden states differ by" in message


def test_an_encoder_without_a_pooler_loads(tmp_path: Path) -> None:
    build("modernbert").save_pretrained(tmp_path)
    assert load_encoder(str(tmp_path)).packed
    model = TokenClassification(backbone=str(tmp_path))
    model.configure_model()
    assert model.head_dropout.p == 0


def test_what_is_no_encoder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(InputError, match="cannot be loaded as an encoder") as error:
        load_encoder(str(tmp_path))
    assert "\n" not in str(error.value)


Rows = Callable[..., list[TaggedTextBatch]]


@pytest.fixture
def batches_of(mini_data: Path, tiny_encoder: Path) -> Rows:
    def build_rows(**options: Any) -> list[TaggedTextBatch]:
        data = MovieLens100K(
            backbone=str(tiny_encoder), protocol=Protocol(negatives=6), **grouped(batch_format="tagged_text", **options)
        )
        data.setup()
        return list(data.test_dataloader())

    return build_rows


def test_scores_and_reports_do_not_depend_on_packing(batches_of: Rows, tiny_encoder: Path) -> None:
    torch.manual_seed(0)
    model = TokenClassification(backbone=str(tiny_encoder))
    model.configure_model()
    model.eval()
    results, reports = [], []
    for options in ({"eval_batch_size": 1}, {"row_tokens": 1, "eval_batch_size": 8}, {"row_tokens": 400}):
        results.append(scores_by_item(model, batches_of(**options)))
        reports.append(model.confusion.compute().tolist())
        model.confusion.reset()
    assert len(results[0]) == 24 * 7
    check_same_scores(results)
    assert reports[0] == reports[1] == reports[2]
    assert sum(map(sum, reports[0])) == sum(batch.tokens for batch in batches_of())


def test_packing_pads_less(batches_of: Rows) -> None:
    packed, padded = (sum(b.token.numel() for b in batches_of(row_tokens=n, eval_batch_size=24)) for n in (400, 1))
    real = sum(batch.tokens for batch in batches_of())
    assert real < packed < padded


def test_the_loss_and_its_gradient_are_those_of_padded_rows(mini_data: Path, tiny_encoder: Path) -> None:
    gradients, losses = [], []
    for row_tokens in (1, 400):
        torch.manual_seed(0)
        model = TokenClassification(backbone=str(tiny_encoder), dropout=0.0)
        model.configure_model()
        model.log = lambda *a, **k: None  # type: ignore[method-assign]
        data = MovieLens100K(
            backbone=str(tiny_encoder),
            needs=ModelNeeds("tagged_text"),
            protocol=Protocol(negatives=6),
            loader=LoaderOptions(row_tokens=row_tokens),
        )
        data.setup()
        loss = model.training_step(next(iter(data.train_dataloader())), 0)
        loss.backward()
        losses.append(float(loss.detach()))
        gradients.append(torch.cat([v.grad.flatten() for v in model.trained().values() if v.grad is not None]))
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert float((gradients[0] - gradients[1]).norm()) <= 1e-5 * float(gradients[0].norm())
