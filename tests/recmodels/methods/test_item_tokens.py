"""Items as tokens, and lists in which every item is a target, against one forward pass for each target."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from datamodules.contract.batch import CatalogueBatch, PromptTreeBatch
from datamodules.contract.errors import InputError
from datamodules.contract.items import STARTS, ItemTokens
from datamodules.datasets.movielens import MovieLens100K
from datamodules.items.base import ItemForm
from datamodules.items.title import Title
from datamodules.items.token import Token
from datamodules.protocol.rules import Protocol
from recmodels.backbones.causal import load_causal
from recmodels.layers.item_factors import item_factors
from recmodels.methods.adapter import AdapterTuning
from recmodels.methods.base import InstructionRecommender
from recmodels.methods.full import FullTuning
from recmodels.methods.lora import LoRATuning
from recmodels.methods.partial import PartialTuning
from recmodels.methods.prefix import PrefixTuning
from recmodels.methods.zero_shot import ZeroShot
from tests.datamodules.options import grouped

FORMS: list[ItemForm] = [Title(), Token()]
METHODS: dict[str, Any] = {
    "lora": lambda folder: LoRATuning(backbone=folder, r=2),
    "adapter": lambda folder: AdapterTuning(backbone=folder, bottleneck=3),
    "prefix": lambda folder: PrefixTuning(backbone=folder, length=3),
    "full": lambda folder: FullTuning(backbone=folder),
}


def data_of(folder: Path, items: ItemForm, **options: Any) -> MovieLens100K:
    options = {"paraphrase": "dense", "batch_size": 3, "train_history": 8, **options}
    protocol = options.pop("protocol", Protocol(history=5, negatives=4))
    data = MovieLens100K(backbone=str(folder), items=items, protocol=protocol, **grouped(**options))
    data.setup()
    return data


def model_of(data: MovieLens100K, kind: str) -> InstructionRecommender:
    torch.manual_seed(0)
    model: InstructionRecommender = METHODS[kind](data.backbone)
    model.item_tokens = data.item_tokens
    model.configure_model()
    for value in model.trained().values():  # away from the identity
        torch.nn.init.normal_(value, std=0.1)
    return model.eval()


def one_target_at_a_time(model: InstructionRecommender, batch: PromptTreeBatch) -> torch.Tensor:
    """`[B]` log-likelihoods, each of a sequence of its own through plain causal attention over all its logits."""
    backbone, places = model.backbone, torch.arange(len(batch.token))
    table = backbone.item_table
    scores = []
    for branch in range(len(batch.branch_case)):
        mine = batch.label_branch == branch
        total = torch.zeros(())
        for place, label in zip(batch.label_place[mine], batch.label_token[mine], strict=True):
            path = batch.token[(places <= place) & (place < batch.end)]
            size = len(path)
            hidden = backbone.hidden_states(path, torch.full((size,), size), torch.arange(size), 0, (0, size))[-1]
            if table is not None and label >= table.first:
                rows = table.item if table.output is None else table.output
                total = total + (hidden @ rows.T).log_softmax(-1)[label - table.first]
            else:
                total = total + backbone.head(hidden).log_softmax(-1)[label]  # type: ignore[attr-defined]
        scores.append(total)
    return torch.stack(scores)


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("items", FORMS, ids=lambda form: type(form).__name__)
def test_dense_losses_and_gradients_are_those_of_one_target_at_a_time(
    mini_data: Path, tiny_causal: Path, items: ItemForm, kind: str
) -> None:
    data = data_of(tiny_causal, items)
    model = model_of(data, kind)
    batch = next(iter(data.train_dataloader()))
    assert batch.tokens < batch.tokens_unshared / 2
    gradients = []
    for scores in (model(batch), one_target_at_a_time(model, batch)):
        model.zero_grad()
        (-scores.sum() / len(batch.label_token)).backward()
        gradients.append(
            (scores.detach(), {n: v.grad.clone() for n, v in model.trained().items() if v.grad is not None})
        )
    (dense, of_dense), (apart, of_apart) = gradients
    torch.testing.assert_close(dense, apart, rtol=1e-5, atol=1e-5)
    assert of_dense.keys() == of_apart.keys()
    for name, value in of_dense.items():
        torch.testing.assert_close(value, of_apart[name], rtol=1e-4, atol=1e-5, msg=name)
    assert items.token_start is None or model.item_tables().keys() <= of_dense.keys()


@pytest.mark.parametrize("items", FORMS, ids=lambda form: type(form).__name__)
def test_lists_are_what_merging_a_prompt_for_each_target_gives(
    mini_data: Path, tiny_causal: Path, items: ItemForm, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = data_of(tiny_causal, items)
    collator: Any = data.collator
    groups = [data.slates.training(window, 0) for window in range(5)]
    for chosen in (groups, groups[:1], [group[-2:] for group in groups]):
        made = collator.trees(chosen)
        with monkeypatch.context() as patch:
            patch.setattr(collator.trees.slates, "sequences", lambda _: None)
            merged = collator.trees(chosen)
        for name, value in vars(made).items():
            other = getattr(merged, name)
            assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other, name


@pytest.mark.parametrize("items", FORMS, ids=lambda form: type(form).__name__)
def test_no_target_sees_itself_or_what_comes_later(mini_data: Path, tiny_causal: Path, items: ItemForm) -> None:
    """Every score is the same where the later events of the list are not there at all."""
    data = data_of(tiny_causal, items)
    model = model_of(data, "lora")
    group = data.slates.training(0, 0)
    collator: Any = data.collator
    for cut in range(1, len(group)):
        known = model(collator.trees([group[:cut]]))
        torch.testing.assert_close(model(collator.trees([group]))[:cut], known, rtol=1e-5, atol=1e-6)


def test_every_training_event_but_the_first_is_a_target_once(mini_data: Path, tiny_causal: Path) -> None:
    data = data_of(tiny_causal, Token())
    first = data.item_tokens.first  # type: ignore[union-attr]
    seen: list[int] = []
    for batch in data.train_dataloader():
        assert len(batch.label_token) == len(batch.branch_item)
        assert (batch.label_token - first).tolist() == batch.branch_item.tolist()
        seen += batch.branch_item.tolist()
    sequences = data.sequences
    wanted = [
        sequences.item[place]
        for begin, end in zip(sequences.start[:-1], sequences.train_end, strict=True)
        for place in range(begin + 1, end)
    ]
    assert sorted(seen) == sorted(wanted)


def test_a_history_of_items_is_one_token_each_and_a_catalogue_one_product(mini_data: Path, tiny_causal: Path) -> None:
    data = data_of(tiny_causal, Token(), protocol=Protocol(history=5, candidates="full", exclude_seen=False))
    model = model_of(data, "lora")
    batch = next(iter(data.test_dataloader()))
    assert isinstance(batch, CatalogueBatch)
    assert batch.trie.height == 1
    assert len(batch.trie.token) == len(data.sequences.item_ids)
    scores = model.score(batch).view(len(batch.case), -1)
    torch.testing.assert_close(scores.exp().sum(1), torch.ones(len(scores)))  # one choice among all items
    lists = data_of(tiny_causal, Token(), protocol=Protocol(history=5, negatives=4))
    some = next(iter(lists.test_dataloader()))
    cases = {int(case): row for row, case in enumerate(batch.case)}
    expected = [
        scores[cases[int(some.case[case])], item] for case, item in zip(some.branch_case, some.branch_item, strict=True)
    ]
    torch.testing.assert_close(model.score(some), torch.stack(expected), rtol=1e-4, atol=1e-5)


def test_a_solved_case_before_an_open_list_is_a_list_with_its_answer(mini_data: Path, tiny_causal: Path) -> None:
    data = data_of(tiny_causal, Title(), shots=1)
    collator: Any = data.collator
    encoder, slate = collator.slates, data.slates.evaluation(data.sequences.test, 0)
    [made] = encoder.encode([slate])
    written = encoder.encoder.tokenizer.decode(made.prompt)
    titles = data.sequences.titles
    assert "; ".join(titles[item] for item in slate.history) in written
    assert written.count("List the movies that a user watched") == 2


@pytest.mark.parametrize("start", STARTS)
def test_vectors_start_from_titles_events_or_chance(mini_data: Path, tiny_causal: Path, start: str) -> None:
    data = data_of(tiny_causal, Token(start))
    items = data.item_tokens
    assert items is not None
    backbone = load_causal(str(tiny_causal), "float32")
    words = backbone.model.get_input_embeddings().weight.detach().clone()
    backbone.model.lm_head.weight = backbone.model.get_input_embeddings().weight
    assert backbone.add_items(items) == len(items.titles) * backbone.width
    table = backbone.item_table
    assert table is not None
    assert table.output is None
    means = torch.stack([words[list(ids)].mean(0) for ids in items.titles])
    assert torch.allclose(table.item, means) == (start == "title")
    if start == "events":
        assert items.events is not None
        added, factors = (table.item - means).detach(), item_factors(items.events, backbone.width)
        torch.testing.assert_close(added.norm(dim=1).mean(), (means - means.mean(0)).norm(dim=1).mean())
        similar = torch.nn.functional.cosine_similarity
        angles = (similar(each[:, None], each, -1) for each in (added, factors))
        torch.testing.assert_close(*angles, atol=1e-4, rtol=0)
    assert abs(float(table.item.detach().std() / words.std()) - 1) < 0.2 or start != "random"
    token = torch.tensor([0, items.first - 1, items.first, items.first + 3])
    torch.testing.assert_close(table(token), torch.stack([words[0], words[-1], table.item[0], table.item[3]]))


def test_vectors_never_stand_for_other_items(mini_data: Path, tiny_causal: Path) -> None:
    """A catalogue of as many items in another order has the shapes that fit, and is refused by its titles."""
    data = data_of(tiny_causal, Token())
    model = model_of(data, "lora")
    checkpoint: dict[str, Any] = {"state_dict": model.state_dict()}
    model.on_save_checkpoint(checkpoint)
    other = LoRATuning(backbone=str(tiny_causal), r=2)
    items = data.item_tokens
    assert items is not None
    other.item_tokens = ItemTokens(items.first, items.titles[::-1])
    with pytest.raises(
        InputError, match=r"holds vectors of 40 items, and the data's 40 are others or in another order"
    ):
        other.on_load_checkpoint(checkpoint)


def test_a_title_without_tokens_is_named_in_a_list_too(mini_data: Path, tiny_causal: Path) -> None:
    data = data_of(tiny_causal, Title())
    collator: Any = data.collator
    group = data.slates.training(0, 0)
    alone = collator.slates.titles.alone
    collator.slates.titles.alone = lambda item: [] if item == group[1].target else alone(item)
    with pytest.raises(InputError, match="has no tokens under this tokenizer"):
        collator.trees([group])


@pytest.mark.parametrize("kind", METHODS)
def test_a_checkpoint_brings_the_items_back_without_the_data(mini_data: Path, tiny_causal: Path, kind: str) -> None:
    data = data_of(tiny_causal, Token())
    model, batch = model_of(data, kind), next(iter(data.test_dataloader()))
    # Its head is not tied to its embeddings, so items have rows in both.
    assert model.findings["item_parameters"] == 2 * len(data.sequences.item_ids) * model.backbone.width
    checkpoint: dict[str, Any] = {"state_dict": model.state_dict()}
    model.on_save_checkpoint(checkpoint)
    assert model.item_tables().keys() <= checkpoint["state_dict"].keys()
    other: InstructionRecommender = METHODS[kind](data.backbone)
    other.on_load_checkpoint(checkpoint)
    other.load_state_dict(checkpoint["state_dict"], strict=False)
    torch.testing.assert_close(other.eval().score(batch), model.score(batch))


def test_items_learn_at_a_rate_of_their_own_and_an_untuned_model_keeps_them(mini_data: Path, tiny_causal: Path) -> None:
    data = data_of(tiny_causal, Token())
    model = LoRATuning(backbone=str(tiny_causal), r=2, b_rate=4, item_rate=3)
    model.item_tokens = data.item_tokens
    model.configure_model()
    rates = model.rates()
    assert {rates[name] for name in model.item_tables()} == {3}
    assert {rate for name, rate in rates.items() if "lora_B" in name} == {4}
    untuned = ZeroShot(backbone=str(tiny_causal))
    untuned.item_tokens = data.item_tokens
    untuned.configure_model()
    assert not untuned.trained()
    assert untuned.item_tables()


def test_what_cannot_be_is_refused(mini_data: Path, tiny_causal: Path, tiny_t5: Path, tiny_encoder: Path) -> None:
    for folder, reads in ((tiny_t5, "prompt_tree"), (tiny_encoder, "tagged_text")):
        with pytest.raises(InputError, match=r"data.items Token needs a causal language model that answers in text"):
            data_of(folder, Token(), batch_format=reads, paraphrase=1)
        with pytest.raises(InputError, match=r"data.prompts.paraphrase dense needs a causal language model"):
            data_of(folder, Title(), batch_format=reads)
    with pytest.raises(InputError, match=r"model.shots shows solved cases in words"):
        data_of(tiny_causal, Token(), shots=1)
    for name in ("train_history", "shown_history"):
        with pytest.raises(InputError, match=f"data.{name} is 0, must be at least 1"):
            data_of(tiny_causal, Title(), **{name: 0})
    with pytest.raises(InputError, match=r"a wording of cell P1,I0,T2 alone, and the cell is P1,I0,T3"):
        data_of(tiny_causal, Token(), task="reranking")
    backbone = load_causal(str(tiny_causal), "float32")
    with pytest.raises(InputError, match="word embeddings, and its configuration says 7"):
        backbone.add_items(ItemTokens(7, ((1,),)))


def test_items_train_alone_beside_a_frozen_backbone(mini_data: Path, tiny_causal: Path) -> None:
    data = data_of(tiny_causal, Token())
    model = PartialTuning(part="items", backbone=str(tiny_causal))
    model.item_tokens = data.item_tokens
    model.configure_model()
    assert model.trained().keys() == model.item_tables().keys() != set()
    alone = PartialTuning(part="items", backbone=str(tiny_causal))
    with pytest.raises(InputError, match="items have no vectors; use --data.items Token"):
        alone.configure_model()


def test_a_sampled_softmax_estimates_the_whole_one(mini_data: Path, tiny_causal: Path) -> None:
    """The sums that it divides by are those over all items on average, targets among the drawn or not."""
    data = data_of(tiny_causal, Token(sampled=7))
    model = model_of(data, "lora")
    table = model.backbone.item_table
    assert table is not None
    assert table.sampled == 7
    states, item = torch.randn(4, model.backbone.width), torch.arange(4)
    whole = table.logits(states).log_softmax(-1)[torch.arange(4), item]
    draws = torch.stack([table.sampled_log_probabilities(states, item) for _ in range(20_000)])
    torch.testing.assert_close((-draws).exp().mean(0), (-whole).exp(), rtol=0.03, atol=0)


@pytest.mark.parametrize("kind", METHODS)
def test_only_training_draws(mini_data: Path, tiny_causal: Path, kind: str) -> None:
    data = data_of(tiny_causal, Token(sampled=7))
    whole = model_of(data_of(tiny_causal, Token()), kind)
    model = model_of(data, kind)
    batch = next(iter(data.train_dataloader()))
    torch.manual_seed(1)
    first = model(batch)
    assert not torch.allclose(first, model(batch)), "drawn anew"
    torch.manual_seed(1)
    assert torch.equal(first, model(batch)), "by the run's own seed"
    first.sum().backward()
    assert all(value.grad is not None for value in model.item_tables().values())
    with torch.no_grad():
        torch.testing.assert_close(model(batch), whole(batch))


@pytest.mark.parametrize(
    ("asked", "up_to", "taken"), [(None, 10, 5), (None, 1000, None), (9, 10, 9), (10**6, 10, None)]
)
def test_large_catalogues_are_sampled_unless_said_otherwise(
    mini_data: Path,
    tiny_causal: Path,
    monkeypatch: pytest.MonkeyPatch,
    asked: int | None,
    up_to: int,
    taken: int | None,
) -> None:
    monkeypatch.setattr("datamodules.batching.item_codes.ALL_UP_TO", up_to)
    monkeypatch.setattr("datamodules.batching.item_codes.SAMPLED", 5)
    items = data_of(tiny_causal, Token(sampled=asked)).item_tokens
    assert items is not None
    assert items.sampled == taken
    with pytest.raises(InputError, match="data.items.sampled is 0, must be at least 1, or null"):
        Token(sampled=0)
