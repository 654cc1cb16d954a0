"""Every written form of items; the room's files are found by themselves."""

from __future__ import annotations

import importlib
import pickle
import pkgutil
import re
from pathlib import Path

import polars as pl
import pytest
import yaml

import datamodules.items
from benchmarks.cli.app import build
from datamodules.datasets.movielens import MovieLens100K
from datamodules.instructions.choice import PromptOptions
from datamodules.items.base import ItemForm, clean_title
from datamodules.items.token import Token
from datamodules.protocol.rules import Protocol

ROOT = Path(__file__).parents[3]
CONFIGS = sorted((ROOT / "configs" / "items").glob("*.yaml"))
MODULES = [
    importlib.import_module(f"datamodules.items.{each.name}")
    for each in pkgutil.iter_modules(datamodules.items.__path__)
]
FORMS = [
    value
    for module in MODULES
    for value in vars(module).values()
    if isinstance(value, type)
    and issubclass(value, ItemForm)
    and value is not ItemForm
    and value.__module__ == module.__name__
]


class Shouted(ItemForm):
    """Items in capitals: another form, to see that all texts go through the door."""

    def write(self, items: pl.DataFrame) -> list[str]:
        return [clean_title(title).upper() for title in items["title"]]


def test_every_form_has_a_config_and_every_config_a_form() -> None:
    named = {yaml.safe_load(path.read_text())["data"]["init_args"]["items"]["class_path"] for path in CONFIGS}
    assert {form.__name__ for form in FORMS} == named


@pytest.mark.parametrize("form", FORMS)
def test_a_form_writes_one_line_of_text_for_every_item(form: type[ItemForm]) -> None:
    assert re.search(r"arXiv \d{4}\.\d{5}|doi:10|https://", form.__doc__ or "")
    items = MovieLens100K().read().items
    texts = form().write(items)
    assert len(texts) == len(items)
    assert all(text.isprintable() and text == text.strip() != "" for text in texts)
    assert pickle.loads(pickle.dumps(form())).write(items) == texts


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore")
def test_a_form_is_chosen_by_config_and_by_name(path: Path) -> None:
    name = yaml.safe_load(path.read_text())["data"]["init_args"]["items"]["class_path"]
    command = ["fit", "-c", str(ROOT / "configs/model/zero_shot.yaml"), "-c", str(ROOT / "configs/data/ml_100k.yaml")]
    for words in (["-c", str(path)], ["--data.items", name]):
        assert type(build([*command, *words]).datamodule.items).__name__ == name


def test_prompts_and_answers_are_written_in_the_form(mini_data: Path, tiny_causal: Path) -> None:
    options = {"backbone": str(tiny_causal), "protocol": Protocol(negatives=3), "task": "reranking"}
    data = MovieLens100K(items=Shouted(), **options)  # type: ignore[arg-type]
    data.setup()
    plain = MovieLens100K(**options)  # type: ignore[arg-type]
    plain.setup()
    text, slate = data.frozen.text, data.slates.evaluation(data.sequences.test, 0)

    assert data.sequences.titles == plain.sequences.titles  # people read titles
    assert text.answers(slate) == tuple(answer.upper() for answer in plain.frozen.text.answers(slate))
    for title in text.answers(slate):
        assert title in data.sample_prompt("test", 0)
    [one, other] = [next(iter(each.test_dataloader())) for each in (data, plain)]
    assert one.token.tolist() != other.token.tolist()


def test_an_item_starts_from_training_events_alone(mini_data: Path, tiny_causal: Path) -> None:
    data = MovieLens100K(
        backbone=str(tiny_causal),
        items=Token(start="events"),
        protocol=Protocol(negatives=3),
        prompts=PromptOptions(paraphrase="dense"),
    )
    data.setup()
    events = data.item_tokens.events  # type: ignore[union-attr]
    assert events is not None
    seen = data.sequences.trained
    assert 0 < seen.sum() < len(seen)
    assert events.user.tolist() == data.sequences.owner[seen].tolist()
    assert events.item.tolist() == data.sequences.item[seen].tolist()
