"""MovieLens-100K: the miniature through the real reader, the batches it makes, and facts of the real files."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from datamodules.contract.batch import EventBatch
from datamodules.contract.errors import InputError
from datamodules.contract.objectives import ModelNeeds
from datamodules.datasets.movielens import MovieLens100K
from datamodules.instructions.choice import PromptOptions
from datamodules.instructions.templates import find_template, load_templates
from datamodules.protocol.rules import Protocol
from tests.datamodules.options import grouped


@pytest.fixture
def files(data_root: Path, tmp_path: Path) -> Path:
    """A copy of the miniature that a test may change."""
    return Path(shutil.copytree(data_root / "ml-100k", tmp_path / "files"))


def retitled(files: Path, *titles: str) -> MovieLens100K:
    """The miniature with other first titles."""
    path = files / "ml-100k.item"
    lines = path.read_text().splitlines()
    for number, title in enumerate(titles, start=1):
        fields = lines[number].split("\t")
        lines[number] = "\t".join([fields[0], title, *fields[2:]])
    path.write_text("\n".join(lines) + "\n")
    return MovieLens100K(data_dir=files)


def test_the_miniature_is_read_from_where_the_variable_points(mini_data: Path, titles: list[str]) -> None:
    data = MovieLens100K().read()

    assert data.files == (mini_data / "ml-100k" / "ml-100k.inter", mini_data / "ml-100k" / "ml-100k.item")
    assert data.items["item"].to_list() == [str(n + 1) for n in range(len(titles))]
    assert data.interactions["user"].n_unique() == 24
    raw = [line.split("\t") for line in data.files[0].read_text().splitlines()[1:]]
    assert data.interactions.rows() == [(u, i, float(r), float(t)) for u, i, r, t in raw]


def test_articles_come_to_the_front(files: Path, titles: list[str]) -> None:
    assert titles[7] == "Godfather, The"
    given = [
        "Beautiful Mind, A",
        "Affair, An",
        "Boot, Das",
        "Crow, The, Part 2",
        "The End",
        "Heat",
        "Postino, Il",
        "Matrix, The",
    ]

    items = retitled(files, *given).read().items["title"].to_list()

    expected = ["A Beautiful Mind", "An Affair", "Das Boot", "Crow, The, Part 2", "The End", "Heat", "Il Postino"]
    assert items == [*expected, "The Matrix", *titles[8:]]
    assert MovieLens100K(data_dir=files).read().items["title"][7] == "The Matrix"


def test_the_checksum_follows_every_byte_of_both_files(files: Path) -> None:
    data = MovieLens100K(data_dir=files)
    seen = {data.read().checksum}
    for name in ("ml-100k.inter", "ml-100k.item"):
        path = files / name
        path.write_bytes(path.read_bytes() + b"\n")
        seen.add(data.read().checksum)

    assert len(seen) == 3


def test_the_data_sets_fingerprint_follows_data_protocol_and_kind_of_task(files: Path) -> None:
    def fingerprint(**changed: Any) -> str:
        data = MovieLens100K(data_dir=files, **grouped(batch_format="interactions", **changed))
        data.freeze()
        return data.fingerprint

    first = fingerprint()
    assert fingerprint(seed=7, batch_size=2, train_negatives=1, template="matching.en.2") == first
    assert fingerprint(task="reranking") == first  # the same cases and candidates are ranked
    others = {fingerprint(protocol=Protocol(negatives=5)), fingerprint(protocol=Protocol(seed=1))}
    (files / "ml-100k.item").write_text((files / "ml-100k.item").read_text().replace("1980", "1981"))
    others.add(fingerprint())
    assert len(others | {first}) == 4


def test_missing_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"cannot read .*ml-100k\.inter"):
        MovieLens100K(data_dir=tmp_path).read()
    monkeypatch.setenv("INSTRUCTREC_DATA", str(tmp_path / "absent"))
    with pytest.raises(InputError, match="INSTRUCTREC_DATA"):
        MovieLens100K().read()


def test_it_has_words_for_every_language_and_no_more(mini_data: Path) -> None:
    languages = {template.language for template in load_templates().values()}

    assert set(MovieLens100K.words) == languages
    assert {frozenset(words) for words in MovieLens100K.words.values()} == {frozenset({"noun", "nouns", "consumed"})}


def test_its_docstring_tells_source_licence_citation_and_one_real_case(mini_data: Path) -> None:
    told = MovieLens100K.__doc__ or ""

    for needed in (
        "https://grouplens.org",
        "Licence",
        "doi:10.1145/2827872",
        "943 users",
        "1,682 movies",
        "matching.en.1",
    ):
        assert needed in told


@pytest.mark.parametrize(
    "name",
    [
        n
        for n, t in load_templates().items()
        if t.cell and n.endswith(("2", "4")) and (n.startswith(t.form) or "P1,P2,I2" in n)
    ],
)
def test_every_template_makes_batches_of_it(mini_data: Path, tiny_causal: Path, name: str) -> None:
    language = find_template(name).language
    data = MovieLens100K(
        prompts=PromptOptions(language=language, template=name),  # type: ignore[arg-type]
        protocol=Protocol(negatives=1 if find_template(name).form == "pairwise" else 4, test_users=6),
        backbone=str(tiny_causal),
    )
    data.setup()

    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        batch = next(iter(loader))
        assert int(batch.relevance.sum()) == len(batch.case) > 0
        assert set(batch.label_branch.tolist()) == set(range(len(batch.branch_case)))
    chinese = re.search(r"[\u4e00-\u9fff]", data.sample_prompt("test", 0))
    assert (chinese is not None) == (language == "zh")


def test_training_of_counting_recommenders_sees_training_events_only(mini_data: Path) -> None:
    data = MovieLens100K(needs=ModelNeeds("interactions"))
    data.setup()

    [events] = list(data.train_dataloader())

    assert isinstance(events, EventBatch)
    sequences = data.sequences
    assert (events.users, events.items) == (24, 40)
    assert len(events.item) == sum(sequences.train_end - sequences.start[:-1]) == len(sequences.item) - 2 * 24
    for user in range(24):
        own = sequences.item[sequences.start[user] : sequences.train_end[user]]
        assert events.item[events.user == user].tolist() == own.tolist()


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"template": "matching.en.9"}, "no template 'matching.en.9'; the nearest is 'matching.en."),
        ({"template": "like.en.1", "task": "matching"}, "'like.en.1' does not fit data.task 'matching'"),
        ({"template": "matching.zh.1"}, "'matching.zh.1' does not fit data.language 'en'"),
        ({"task": "like", "batch_format": "tagged_text"}, "data.task 'like' needs a model that answers in text"),
        ({"batch_size": 0}, "data.batch_size is 0, must be at least 1"),
        ({"eval_batch_size": 0}, "data.eval_batch_size is 0, must be at least 1"),
        ({"row_tokens": 0}, "data.row_tokens is 0, must be at least 1"),
    ],
)
def test_impossible_settings_are_refused_at_once(changed: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=re.escape(reason)):
        MovieLens100K(**grouped(**changed))


@pytest.mark.integration
def test_the_real_files_hold_what_the_docstring_says() -> None:
    data = MovieLens100K().read()

    assert data.interactions["user"].n_unique() == 943
    assert (len(data.items), len(data.interactions)) == (1682, 100_000)
    assert data.interactions.row(0) == ("196", "242", 3.0, 881250949.0)  # the first line of u.data
    by_id = dict(zip(data.items["item"], data.items["title"], strict=True))
    assert by_id["242"] == "Kolya"
    assert by_id["127"] == "The Godfather"
    assert not any(re.search(r", (The|A|An)$", title) for title in by_id.values())
