"""What options of a data module give which instructions, and which are refused before any data is opened."""

from __future__ import annotations

import re
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest

from datamodules.contract.errors import InputError
from datamodules.contract.objectives import NAMED_NEEDS, ModelNeeds
from datamodules.datasets.movielens import MovieLens100K
from datamodules.instructions.choice import PromptOptions, choose_prompting
from datamodules.instructions.mixture import Mixture, mixture_of, shares
from datamodules.instructions.preferences import TextRules
from datamodules.instructions.slates import WindowOptions
from datamodules.protocol.rules import Protocol

COLUMNS = ("title", "rating", "categories", "review", "query", "profile")


def chosen(columns: tuple[str, ...] = COLUMNS, **options: Any) -> Any:
    apart = {name: options.pop(name) for name in ("task", "cell", "texts") if name in options}
    return choose_prompting(PromptOptions(**options), columns, "Shop", **apart)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "matching.en.1"),
        ({"task": "reranking"}, "reranking.en.1"),
        ({"cell": "P1,I2,T3"}, "P1,I2,T3.en.1"),
        ({"cell": "P1,P2,T2", "language": "zh", "paraphrase": 4}, "P1,P2,T2.zh.4"),
        ({"preference": "both", "intention": "vague", "task": "like"}, "P1,P2,I1,T0.en.1"),
        ({"preference": "none", "intention": "preference"}, "P0,P2,T2.en.1"),
        ({"template": "like.en.3"}, "like.en.3"),
        ({"template": "P0,I1,T3.zh.2", "language": "zh", "cell": "P0,I1,T3"}, "P0,I1,T3.zh.2"),
        ({"paraphrase": "seen"}, "matching.en.1"),
    ],
)
def test_any_cell_and_wording_is_one_option(options: dict[str, Any], name: str) -> None:
    assert chosen(**options).template.id == name


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"cell": "P1,I0,T3", "task": "like"}, "data.cell 'P1,I0,T3' says data.task already"),
        ({"paraphrase": 5}, "data.paraphrase is 5, must be 1 to 4"),
        ({"paraphrase": 0}, "data.paraphrase is 0, must be 1 to 4"),
        ({"template": "thought_from_history.en.1"}, "only trains; name it in data.mixture"),
        ({"template": "like.en.1", "preference": "both"}, "does not fit data.preference 'both'"),
        ({"template": "like.en.1", "cell": "P1,I0,T3"}, "does not fit data.cell 'P1,I0,T3'"),
        ({"mixture": {"P1,I0,T9": 1}}, "no code 'T9'"),
        ({"mixture": {"P1,I0,T3": 0}}, "the weight of P1,I0,T3 is 0, must be a number above 0"),
        ({"mixture": {}}, "data.mixture is empty"),
        ({"mixture": {"matching.zh.1": 1}}, "template 'matching.zh.1' is not in data.language 'en'"),
        ({"mixture": {"P1,I0,T3": 1}, "temperature": 0}, "data.temperature is 0, must be above 0"),
        ({"mixture": {"P1,I1,T3": 1, "P1,I2,T3": 1}}, "needs data.texts.intention, one rule for both"),
        ({"texts": TextRules(preference="review")}, "no prompt tells a preference"),
        ({"texts": TextRules(intention="query")}, "no prompt tells an intention"),
        ({"cell": "P2,I0,T2", "texts": TextRules(preference="annotation")}, "needs annotation, and Shop has title"),
    ],
)
def test_options_that_contradict_are_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=re.escape(reason)):
        chosen(**options)


@pytest.mark.parametrize(
    ("columns", "options", "reason"),
    [
        (("title",), {"task": "like"}, "task 'like' needs rating, and Shop has title"),
        (("title",), {"task": "rating"}, "task 'rating' needs rating"),
        (
            ("title",),
            {"cell": "P2,I0,T2"},
            "an explicit preference needs one of profile, categories, review, and Shop has",
        ),
        (
            ("title", "review"),
            {"cell": "P1,I2,T3"},
            "a specific intention needs one of query, categories, and Shop has",
        ),
        (("title", "categories"), {"cell": "P1,I1,T3"}, "a vague intention needs one of query, review, and Shop has"),
        (
            ("title", "review"),
            {"mixture": {"query_from_item": 1}},
            "a specific intention needs one of query, categories",
        ),
    ],
)
def test_what_the_data_lacks_is_refused(columns: tuple[str, ...], options: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=re.escape(reason)):
        chosen(columns, **options)


def test_a_data_set_is_refused_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MovieLens100K, "read", lambda self: pytest.fail("the data was opened"))

    with pytest.raises(InputError, match="a vague intention needs one of query, review, and MovieLens100K has title"):
        MovieLens100K(cell="P1,I1,T3")


@pytest.mark.parametrize(
    ("options", "model", "reason"),
    [
        ({"task": "rating"}, ("tagged_text", "likelihood"), "data.task 'rating' needs a model that answers in text"),
        ({"cell": "P1,I2,T3"}, ("tagged_text", "listwise"), "this one reads titles only"),
        ({"mixture": {"P1,I0,T3": 1}}, ("tagged_text", "listwise"), "this one reads titles only"),
        ({"task": "reranking"}, ("prompt_tree", "yes_no"), "model.objective 'yes_no' needs data.task like"),
        ({"task": "like"}, ("prompt_tree", "rating"), "model.objective 'rating' needs data.task rating"),
        ({"mixture": {"query_from_item": 1}}, ("prompt_tree", "listwise"), "'listwise' needs several answers"),
        ({"task": "pairwise"}, ("prompt_tree", "likelihood"), "'pairwise' needs protocol.negatives 1, it is 19"),
    ],
)
def test_models_that_do_not_fit_are_refused(options: dict[str, Any], model: Any, reason: str) -> None:
    with pytest.raises(InputError, match=re.escape(reason)):
        chosen(**options).check(ModelNeeds(model[0], *astuple(NAMED_NEEDS[model[1]])), Protocol())


def test_the_wish_and_its_source_part_fingerprints_and_nothing_else_does(tmp_path: Path) -> None:
    file = tmp_path / "notes.jsonl"
    file.write_text("{}")
    same = [chosen(**o).fingerprinted() for o in ({}, {"cell": "P1,P2,I0,T3"}, {"paraphrase": 2}, {"cell": "P0,P2,T2"})]
    other = [
        chosen(cell="P1,I1,T3").fingerprinted(),
        chosen(cell="P1,I2,T3").fingerprinted(),
        chosen(cell="P1,I1,T3", texts=TextRules(intention="target_review")).fingerprinted(),
        chosen(cell="P1,I1,T3", texts=TextRules(annotations=file)).fingerprinted(),
    ]
    file.write_text('{"user": "1"}')
    other.append(chosen(cell="P1,I1,T3", texts=TextRules(annotations=file)).fingerprinted())

    assert same == [[]] * 4
    assert len({tuple(each) for each in other}) == 5


def test_a_mixture_keeps_its_shares_and_leaves_held_out_wordings_out() -> None:
    made = chosen(cell="P1,I0,T3", mixture={"P1,I0,T3": 3, "thought_from_history": 1})
    counts: dict[str, int] = {}
    for user in range(4000):
        name = made.every[made.choice.of(f"u{user}", 2)].id
        counts[name] = counts.get(name, 0) + 1

    assert not any(template.held_out for template in made.others)
    assert len(counts) == 6
    assert counts["reranking.en.1"] == pytest.approx(1000, abs=120)
    assert sum(n for name, n in counts.items() if name.startswith("thought")) == pytest.approx(1000, abs=120)


def test_what_is_evaluated_need_not_be_trained_on() -> None:
    made = chosen(cell="P1,I0,T3", paraphrase=4, mixture={"P1,I0,T3": 1})

    assert made.template.held_out
    assert {made.choice.of(f"u{user}", 0) for user in range(100)} == {1, 2, 3}


def test_the_choice_is_a_function_of_seed_epoch_and_user() -> None:
    mixture = mixture_of(shares({"a": 1, "b": 1, "c": 1}), 5)
    users = [f"u{n}" for n in range(50)]
    first = [mixture.of(user, 0) for user in users]

    assert first == [mixture.of(user, 0) for user in users]
    assert first[::-1] == [Mixture(mixture.bounds, 5).of(user, 0) for user in users[::-1]]
    assert first != [mixture.of(user, 1) for user in users]
    assert first != [Mixture(mixture.bounds, 6).of(user, 0) for user in users]


def test_a_hot_mixture_is_level_and_a_cold_one_takes_the_largest() -> None:
    hot, cold = shares({"a": 1, "b": 9}, 1e6), shares({"a": 1, "b": 9}, 1e-3)

    assert hot["a"] == pytest.approx(0.5, abs=1e-4)
    assert cold["b"] == pytest.approx(1.0)
    assert sum(hot.values()) == pytest.approx(1)


def test_a_continued_mixture_trains_on_the_same_batches(mini_data: Path, tiny_causal: Path) -> None:
    def batches(start: tuple[int, int], epoch: int) -> list[list[int]]:
        data = MovieLens100K(
            backbone=str(tiny_causal),
            cell="P1,I0,T3",
            protocol=Protocol(negatives=2),
            prompts=PromptOptions(mixture={"P1,I0,T3": 1, "P1,P2,I2,T2": 1, "thought_from_history": 1}),
            batch_size=2,
            windows=WindowOptions(targets_per_window=3),
        )
        data.setup()
        data._start = start
        loader = data.train_dataloader()
        loader.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]
        return [[*batch.token.tolist(), *batch.label_token.tolist()] for batch in loader]

    first, second = batches((0, 0), 0), batches((0, 0), 1)
    assert batches((0, 3), 0) == first[3:]
    assert batches((1, 2), 1) == second[2:]
    assert sorted(map(len, first)) != sorted(map(len, second)), "each epoch has its own wordings"
