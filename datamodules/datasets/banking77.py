"""BANKING77: customers' questions and the topic that answers them."""

from __future__ import annotations

import csv
from typing import ClassVar

from datamodules.base import InstructionDataModule
from datamodules.contract.errors import InputError
from datamodules.sources.fetch import locate
from datamodules.tables.given_cases import GivenCase, interactions_of, share_of
from datamodules.tables.interactions import Interactions

_VALIDATION = 0.1  # of the training questions, for which the authors publish no validation part


class Banking77(InstructionDataModule):
    """BANKING77: which of 77 help topics answers a customer's question (customer-service answer recommendation).

    Source: Casanueva et al. 2020, arXiv 2003.04807; https://github.com/PolyAI-LDN/task-specific-datasets
    (`banking_data`). Licence: CC-BY-4.0. 10,003 training and 3,080 test questions as published; a tenth of the training
    questions, chosen by their text, validates. The catalogue is ranked as a whole.

    One real case, `P0,I2,T2.en.1`: "The user looks for: I am still waiting on my card?" answered by "card arrival".
    """

    words: ClassVar[dict[str, dict[str, str]]] = {
        "en": {"noun": "help topic", "nouns": "help topics", "consumed": "opened"},
        "zh": {"noun": "帮助主题", "nouns": "帮助主题", "consumed": "查看过"},
    }
    provides: ClassVar[tuple[str, ...]] = ("title", "query")

    def read(self) -> Interactions:
        """Reads `train.csv` and `test.csv`; the topic `card_arrival` becomes "card arrival"."""
        folder = self.data_dir or locate("faq_banking77", None, ("train.csv", "test.csv"))
        files = [folder / "train.csv", folder / "test.csv"]
        cases: list[GivenCase] = []
        for file in files:
            try:
                with file.open(encoding="utf-8-sig", newline="") as text:
                    rows = list(csv.DictReader(text))
            except (OSError, UnicodeDecodeError, csv.Error) as error:
                raise InputError(f"cannot read {file}: {error}") from error
            for number, row in enumerate(rows):
                query, topic = row.get("text"), row.get("category")
                if not query or not topic:
                    raise InputError(f"{file}: row {number + 1} lacks `text` or `category`")
                split = "test" if file.stem == "test" else "validation" if share_of(query) < _VALIDATION else "train"
                cases.append(GivenCase(f"{file.stem}-{number}", split, topic, query=query))
        titles = {topic: topic.replace("_", " ") for topic in sorted({case.target for case in cases})}
        made = sum(case.split == "validation" for case in cases)
        return interactions_of(cases, titles, files, {"training questions that validate": made})
