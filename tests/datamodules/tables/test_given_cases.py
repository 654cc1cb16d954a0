"""Data sets that are published as cases, on miniatures of their true layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from datamodules.base import InstructionDataModule
from datamodules.contract.errors import InputError
from datamodules.datasets.banking77 import Banking77
from datamodules.datasets.dialmed import DialMed
from datamodules.datasets.intention_qa import IntentionQA
from datamodules.datasets.tallrec import TALLRecBook, TALLRecMovie
from datamodules.protocol.rules import Protocol
from tests.datamodules.datasets.case_miniatures import write_case_data
from tests.datamodules.options import grouped

PUBLISHED = Protocol(split="published", candidates="full", like_threshold=1)
LISTED = Protocol(split="published", candidates="published")
MADE: dict[str, tuple[type[InstructionDataModule], dict[str, Any]]] = {
    "tallrec_movie": (TALLRecMovie, {"task": "like", "protocol": PUBLISHED}),
    "tallrec_book": (TALLRecBook, {"task": "like", "protocol": PUBLISHED}),
    "faq_banking77": (Banking77, {"cell": "P0,I2,T2", "protocol": PUBLISHED}),
    "intentionqa": (IntentionQA, {"cell": "P1,I1,T3", "protocol": LISTED, "train_negatives": 2}),
    "zh_dialmed": (DialMed, {"cell": "P0,I1,T2", "language": "zh", "protocol": LISTED}),
}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_case_data(tmp_path)
    monkeypatch.setenv("INSTRUCTREC_DATA", str(tmp_path))
    return tmp_path


def made(name: str, tiny_causal: Path, **more: Any) -> Any:
    cls, options = MADE[name]
    data = cls(backbone=str(tiny_causal), **grouped(targets_per_window=1, **options | more))
    data.setup()
    return data


@pytest.mark.parametrize("name", MADE)
def test_batches_of_every_split_have_one_right_answer(name: str, root: Path, tiny_causal: Path) -> None:
    data = made(name, tiny_causal)

    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        batch = next(iter(loader))
        assert batch.relevance.sum() == len(batch.case) > 0


@pytest.mark.parametrize("name", MADE)
def test_training_asks_for_training_targets_alone(name: str, root: Path, tiny_causal: Path) -> None:
    """No event of a history, and none of the other splits, is ever a target."""
    data = made(name, tiny_causal)
    trained = [slate for window in range(len(data.slates.windows)) for slate in data.slates.training(window, 0)]
    table = data.read().interactions.filter(~data.read().interactions["context"])

    expected = table.filter(table["split"] == "train").select("user", "item").rows()
    found = [(slate.user, data.sequences.item_ids[slate.target]) for slate in trained]
    assert sorted(found) == sorted(expected)
    for split in ("validation", "test"):
        cases = data.cases(split)
        users = [data.user_of(split, case) for case in range(len(cases))]
        assert sorted(users) == sorted(table.filter(table["split"] == split)["user"].to_list())


def test_tallrec_shows_what_was_liked_and_disliked(root: Path, tiny_causal: Path) -> None:
    data = made("tallrec_movie", tiny_causal)
    prompt = data.sample_prompt("test", 0)

    assert "Paris, Texas (1984) (liked); Alien (1979) (disliked)." in prompt
    assert prompt.endswith('Will the user like Say "Cheese", Yes (1990)?')
    assert data.slates.evaluation(data.sequences.test, 0).target_liked is False


def test_tallrec_books_keep_their_authors(root: Path, tiny_causal: Path) -> None:
    prompt = made("tallrec_book", tiny_causal).sample_prompt("test", 0)

    assert "Sula by Toni Morrison (liked); East, West by Salman Rushdie (liked)." in prompt
    assert "Will the user like Epitaph by David M. Masumoto?" in prompt


def test_few_shots_are_whole_examples(root: Path, tiny_causal: Path) -> None:
    data = made("tallrec_movie", tiny_causal, protocol=Protocol(split="published", candidates="full", shots=2))

    slates = [slate for window in range(len(data.slates.windows)) for slate in data.slates.training(window, 0)]
    assert len(slates) == 2
    assert all(slate.user.startswith("train-") and len(slate.history) == 2 for slate in slates)


def test_a_question_is_told_and_the_topic_is_answered(root: Path, tiny_causal: Path) -> None:
    data = made("faq_banking77", tiny_causal)
    slate = data.slates.evaluation(data.sequences.test, 0)

    assert data.sample_prompt("test", 0).endswith(
        'The user looks for: Where, is my "card"?.\nWhich help topic is wanted?'
    )
    assert data.answer_text(slate.target) == "card arrival"


def test_intention_qa_ranks_its_own_options(root: Path, tiny_causal: Path) -> None:
    data = made("intentionqa", tiny_causal)
    slate = data.slates.evaluation(data.sequences.test, 0)

    assert len(slate.candidates) == 4
    assert slate.target in slate.candidates
    assert "What the user has in mind: they both are useful" in data.sample_prompt("test", 0)
    bought = {
        split: {
            data.sequences.titles[data.slates.evaluation(data.cases(split), c).history[0]]
            for c in range(len(data.cases(split)))
        }
        for split in ("validation", "test")
    }  # type: ignore[arg-type]
    assert not bought["validation"] & bought["test"]


def test_a_dialogue_with_two_drugs_makes_a_case_of_each(root: Path, tiny_causal: Path) -> None:
    data = made("zh_dialmed", tiny_causal)
    slates = [data.slates.evaluation(data.sequences.test, case) for case in range(len(data.sequences.test))]

    assert [slate.user for slate in slates] == ["test-1-甲", "test-2-甲", "test-2-乙"]
    names = [{data.sequences.titles[item] for item in slate.candidates} for slate in slates]
    assert names == [{"甲", "乙", "丙"}, {"甲", "丙"}, {"乙", "丙"}]
    assert all(len(slate.history) == 0 for slate in slates)
    assert "[MASK]" in data.sample_prompt("test", 1)


def test_dialmed_trains_on_its_own_part_where_it_is_there(root: Path, tiny_causal: Path) -> None:
    folder = root / "zh_dialmed/data/dataset"
    moved = DialMed(cell="P0,I1,T2", protocol=LISTED).read()
    assert moved.repairs["development cases that train"] > 0
    (folder / "train.txt").write_text((folder / "dev.txt").read_text())
    whole = DialMed(cell="P0,I1,T2", protocol=LISTED).read()

    assert whole.repairs == {}
    assert whole.interactions["split"].unique().sort().to_list() == ["test", "train", "validation"]
    assert whole.checksum != moved.checksum


def test_a_new_customers_question_is_asked(root: Path, tiny_causal: Path, tmp_path: Path) -> None:
    file = tmp_path / "users.jsonl"
    file.write_text('{"history": [], "query": "My card is gone"}\n')
    data = made("faq_banking77", tiny_causal, predict_file=file)
    batch = next(iter(data.predict_dataloader()))
    text = data.collator.text.instruction(data.requests[0].slate(0, 10))

    assert "The user looks for: My card is gone." in text.user
    assert len(batch.branch_item) == 8
    for line, reason in (
        ('{"history": []}', "history is empty"),
        ('{"history": [], "query": 7}', "query must be a text"),
    ):
        file.write_text(line)
        with pytest.raises(InputError, match=reason):
            made("faq_banking77", tiny_causal, predict_file=file).predict_dataloader()


@pytest.mark.parametrize(
    ("name", "file", "text", "reason"),
    [
        ("tallrec_movie", "test.json", "{", "cannot read .*test.json"),
        ("tallrec_movie", "test.json", "{}", "test.json: not a list of examples"),
        ("tallrec_movie", "valid.json", '[{"input": "Hello", "output": "Yes."}]', "valid.json: example 0 is not"),
        ("tallrec_movie", "valid.json", "[7]", "valid.json: example 0 is not"),
        ("faq_banking77", "test.csv", "text,category\nhello\n", "test.csv: row 1 lacks `text` or `category`"),
        ("faq_banking77", "test.csv", "a,b\n1,2\n", "test.csv: row 1 lacks"),
        ("intentionqa", "QA_task2/QA_fullInfo/QA_fullInfo_task2.jsonl", "{}\n", "task2.jsonl:1: not a question"),
        (
            "intentionqa",
            "QA_task2/QA_fullInfo/QA_fullInfo_task2.jsonl",
            '{"options": 7}\n',
            "task2.jsonl:1: not a question",
        ),
        ("zh_dialmed", "data/dataset/test.txt", "{}\n", "test.txt:1: not a dialogue"),
        ("zh_dialmed", "data/dataset/test.txt", '{"label": ["丁"], "dialog": ["?"]}\n', "test.txt:1: the drug '丁'"),
        ("zh_dialmed", "data/dataset/label.json", "[", "cannot read .*label.json"),
    ],
)
def test_bad_files_are_named_with_their_place(name: str, file: str, text: str, reason: str, root: Path) -> None:
    (root / name / file).write_text(text)
    cls, options = MADE[name]
    with pytest.raises(InputError, match=reason):
        cls(**grouped(**options)).read()


def test_absent_files_are_refused_with_where_to_put_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INSTRUCTREC_DATA", str(tmp_path))
    for name, (cls, options) in MADE.items():
        with pytest.raises(InputError, match=f"{name} cannot be downloaded automatically: put "):
            cls(**grouped(**options)).read()


@pytest.mark.integration
def test_tallrec_examples_follow_from_the_interactions() -> None:
    """TALLRec's rule on MovieLens 100K's own events: file order of users, times compared as text, the last 10,000."""
    import os

    from datamodules.datasets.movielens import MovieLens100K
    from datamodules.sources.fetch import locate
    from datamodules.tables.delimited import read_atomic_file

    chosen = os.environ.get("INSTRUCTREC_DATA", "")
    if not (Path(chosen) / "tallrec_movie" / "test.json").is_file():
        pytest.skip("INSTRUCTREC_DATA holds no tallrec_movie; nobody may pass it on")
    folder = locate("ml-100k", MovieLens100K.source, ("ml-100k.inter", "ml-100k.item"))
    names = {"user_id": "user", "item_id": "item", "rating": "rating", "timestamp": "timestamp"}
    events = read_atomic_file(folder / "ml-100k.inter", names)
    by_user: dict[str, list[tuple[str, str, bool]]] = {}
    for user, item, rating, time in events.rows():
        by_user.setdefault(user, []).append((f"{time:.0f}\n", item, rating > 3))
    windows = []
    for mine in by_user.values():
        mine.sort(key=lambda event: event[0])
        windows += [(mine[n - 10 : n], mine[n]) for n in range(10, len(mine))]
    items = read_atomic_file(
        folder / "ml-100k.item", {"item_id": "item", "movie_title": "title", "release_year": "year"}
    )
    year = {item: (title, year) for item, title, year in items.rows()}

    def written(item: str) -> str:
        return f"{year[item][0]} ({year[item][1]})"

    for name, rows in (("valid", windows[-2000:-1000]), ("test", windows[-1000:])):
        examples = json.loads((Path(chosen) / "tallrec_movie" / f"{name}.json").read_bytes())
        differing = 0
        for (history, target), example in zip(rows, examples, strict=True):
            told = [", ".join(f'"{written(i)}"' for _, i, liked in history if liked is kind) for kind in (True, False)]
            asked = f'Whether the user will like the target movie "{written(target[1])}"?'
            differing += example["input"] != f"User Preference: {told[0]}\nUser Unpreference: {told[1]}\n{asked}"
            assert example["output"] == ("Yes." if target[2] else "No.")
        assert differing == 0
