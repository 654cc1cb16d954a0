"""TALLRec's published examples."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import ClassVar

from datamodules.base import InstructionDataModule
from datamodules.contract.errors import InputError
from datamodules.sources.fetch import locate
from datamodules.tables.given_cases import GivenCase, interactions_of
from datamodules.tables.interactions import Interactions

# Reading the examples that TALLRec publishes: a sentence of titles liked and disliked, and Yes or No.

_INPUT = re.compile(
    r"User Preference: (?P<liked>.*)\nUser Unpreference: (?P<disliked>.*)\n"
    r"Whether the user will like the target (?:movie|book) (?P<target>.*)\?",
    re.DOTALL,
)
_SPLITS = {"train": "train", "valid": "validation", "test": "test"}


def read_examples(data_dir: Path | None, name: str) -> Interactions:
    """The published examples as cases; a title is its item's id.

    Raises:
        InputError: a file is not there or is no list of examples, or an example is malformed (named by number).
    """
    folder = data_dir or locate(name, None, ("valid.json", "test.json"))
    train = next((n for n in ("train.json", "train.reconstructed.json") if (folder / n).is_file()), "train.json")
    files = {split: folder / (train if split == "train" else f"{split}.json") for split in _SPLITS}
    cases = []
    for split, file in files.items():
        try:
            examples = json.loads(file.read_bytes())
        except (OSError, ValueError) as error:
            raise InputError(f"cannot read {file}: {error}") from error
        if not isinstance(examples, list):
            raise InputError(f"{file}: not a list of examples")
        for number, example in enumerate(examples):
            given = example if isinstance(example, dict) else {}
            found = _INPUT.fullmatch(str(given.get("input")))
            answer = str(given.get("output")).rstrip(".")
            if not found or answer not in ("Yes", "No"):
                raise InputError(f"{file}: example {number} is not instruction, input and output of TALLRec")
            liked, disliked, target = (titles_in(found[part]) for part in ("liked", "disliked", "target"))
            if len(target) != 1:
                raise InputError(f"{file}: example {number} names {len(target)} targets")
            ratings = (1.0,) * len(liked) + (0.0,) * len(disliked)
            history, rating = (*liked, *disliked), float(answer == "Yes")
            cases.append(GivenCase(f"{split}-{number}", _SPLITS[split], target[0], history, ratings, rating))
    titles = {title: title for case in cases for title in (*case.history, case.target)}
    return interactions_of(cases, titles, list(files.values()))


def titles_in(text: str) -> tuple[str, ...]:
    r"""The titles of a published list; the quotes of books' titles go, their authors stay.

    Example:
        >>> titles_in('"Alien (1979)", "Paris, Texas (1984)"')
        ('Alien (1979)', 'Paris, Texas (1984)')
        >>> titles_in('""Sula" written by Toni Morrison"')
        ('Sula by Toni Morrison',)
    """
    if '" written by ' in text:
        text = text[1:-1] if text.startswith('""') else text
        return tuple(re.sub(r'^"(.*)" written by ', r"\1 by ", part) for part in re.split(r', (?=")', text))
    return tuple(text[1:-1].split('", "')) if text else ()


class TALLRecMovie(InstructionDataModule):
    """TALLRec's movie task: will the user like the target, given ten movies liked or disliked (rating above 3 of 5)?

    Source: Bao et al. 2023, arXiv 2305.00447; https://github.com/SAI990323/TALLRec (`data/movie`), made of MovieLens
    100K: GroupLens terms, research use, no redistribution. 8,000 / 1,000 / 1,000 examples; users straddle the splits,
    and timestamps were sorted as strings. Liked titles come before disliked ones, as published.

    One real case, `like.en.1`: "Movies a user rated, oldest first: Paris, Texas (1984) (liked); ... Will the user like
    Perez Family, The (1995)?"
    """

    words: ClassVar[dict[str, dict[str, str]]] = {
        "en": {"noun": "movie", "nouns": "movies", "consumed": "watched"},
        "zh": {"noun": "电影", "nouns": "电影", "consumed": "看过"},
    }

    def read(self) -> Interactions:
        """Reads `train.json` (or the copy rebuilt from the authors' table), `valid.json` and `test.json`."""
        return read_examples(self.data_dir, "tallrec_movie")


class TALLRecBook(InstructionDataModule):
    """TALLRec's book task: as the movie task, on Book-Crossing (liked above 5 of 10), with up to ten books shown.

    Source: Bao et al. 2023, arXiv 2305.00447; https://github.com/SAI990323/TALLRec (`data/book`), made of
    Book-Crossing (Ziegler et al. 2005, doi:10.1145/1060745.1060754), research use. 2,427 validation and 2,427 test
    examples, users apart; histories have no order in time.

    One real case, `like.en.1`: "Books a user rated, oldest first: The Bean Trees by Barbara Kingsolver (liked); ..." (Counts and
    example as published: the real files have not been read here.)
    """

    words: ClassVar[dict[str, dict[str, str]]] = {
        "en": {"noun": "book", "nouns": "books", "consumed": "read"},
        "zh": {"noun": "书", "nouns": "书", "consumed": "读过"},
    }

    def read(self) -> Interactions:
        """Reads `train.json`, `valid.json` and `test.json`."""
        return read_examples(self.data_dir, "tallrec_book")
