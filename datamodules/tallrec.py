"""TALLRec's published examples."""

from __future__ import annotations

from typing import ClassVar

from datamodules.base import InstructionDataModule
from datamodules.interactions import Interactions
from datamodules.tallrec_examples import read_examples


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
