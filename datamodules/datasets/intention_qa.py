"""IntentionQA: a purchase, an intention in words, and the product it leads to."""

from __future__ import annotations

import json
from html import unescape
from typing import ClassVar

from datamodules.base import InstructionDataModule
from datamodules.contract.errors import InputError
from datamodules.sources.fetch import locate
from datamodules.tables.given_cases import GivenCase, interactions_of, share_of
from datamodules.tables.interactions import Interactions

_FILE = "QA_task2/QA_fullInfo/QA_fullInfo_task2.jsonl"


class IntentionQA(InstructionDataModule):
    """IntentionQA, task 2: which of four products does a buyer with a stated intention take as well?

    Source: Ding et al. 2024, arXiv 2406.10173; https://github.com/HKUST-KnowComp/IntentionQA (`data/QA_task2`).
    Licence: MIT. 2,315 questions on Amazon products. The authors publish no split, as they only evaluate: here the
    product bought first decides, 20 % test, 10 % validation, so that no product is the question of two parts.

    One real case, `P1,I1,T3.en.1`: "Products a user bought, oldest first: Belkin USB A/A Extension Cable ... What the
    user has in mind: they both are a type of USB extension cable."
    """

    words: ClassVar[dict[str, dict[str, str]]] = {
        "en": {"noun": "product", "nouns": "products", "consumed": "bought"},
        "zh": {"noun": "商品", "nouns": "商品", "consumed": "买过"},
    }
    provides: ClassVar[tuple[str, ...]] = ("title", "query")

    def read(self) -> Interactions:
        """Reads the questions; what stands before "because" in an intention is the same in all and goes."""
        folder = self.data_dir or locate("intentionqa", None, (_FILE,))
        file = folder / _FILE
        cases: list[GivenCase] = []
        titles: dict[str, str] = {}
        try:
            lines = file.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read {file}: {error}") from error
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                options = [unescape(str(option)) for option in row["options"].values()]
                bought, told = unescape(str(row["item_a_name"])), str(row["assertion"])
                right = unescape(str(row["options"][row["gold_ind"]]))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise InputError(f"{file}:{number}: not a question of IntentionQA: {error}") from error
            titles |= {title: title for title in (bought, *options)}
            part = share_of(bought)
            split = "test" if part < 0.2 else "validation" if part < 0.3 else "train"
            query = told.rpartition("because ")[2]
            case = GivenCase(
                str(row.get("id", number)), split, right, (bought,), query=query, candidates=tuple(options)
            )
            cases.append(case)
        return interactions_of(cases, titles, [file])
