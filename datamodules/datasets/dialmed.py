"""DialMed: Chinese dialogues between patient and doctor, and the drugs that the doctor recommended."""

from __future__ import annotations

import json
from typing import ClassVar

from datamodules.base import InstructionDataModule
from datamodules.contract.errors import InputError
from datamodules.sources.fetch import locate
from datamodules.tables.given_cases import GivenCase, interactions_of, share_of
from datamodules.tables.interactions import Interactions

_FOLDER = "data/dataset"
_VALIDATION = 0.2  # of the development dialogues, where they have to train


class DialMed(InstructionDataModule):
    """DialMed: which of 70 drugs stands behind the mask in a dialogue (treatment recommendation)?

    Source: He et al. 2022, arXiv 2202.13094; https://github.com/Hhhhhhhzf/DialMed (`data/dataset`). Licence: MIT.
    1,192 development and 1,199 test dialogues. A dialogue with several drugs makes a case of each, ranked among all
    drugs but the other right ones. Where `train.txt` is not there, four fifths of the development dialogues train.

    One real case, `P0,I1,T2.zh.1`: "用户的想法：患者：喉咙紧，鼻塞，痰是黄色。... 医生：可以口服感冒药，如果痰液比较黄，可以配合一组（[MASK]" answered by "阿奇霉素".
    """

    words: ClassVar[dict[str, dict[str, str]]] = {
        "en": {"noun": "drug", "nouns": "drugs", "consumed": "took"},
        "zh": {"noun": "药物", "nouns": "药物", "consumed": "用过"},
    }
    provides: ClassVar[tuple[str, ...]] = ("title", "query")

    def read(self) -> Interactions:
        """Reads the dialogues and `label.json`, the drugs' names."""
        names = tuple(f"{_FOLDER}/{name}" for name in ("dev.txt", "test.txt", "label.json"))
        folder = (self.data_dir or locate("zh_dialmed", None, names)) / _FOLDER
        published = (folder / "train.txt").is_file()
        files = [
            folder / name for name in (*(("train.txt",) if published else ()), "dev.txt", "test.txt", "label.json")
        ]
        drugs: list[str] = []
        cases: list[GivenCase] = []
        for file in reversed(files):
            try:
                text = file.read_text(encoding="utf-8-sig")
                drugs = list(json.loads(text)) if file.stem == "label" else drugs
            except (OSError, ValueError) as error:
                raise InputError(f"cannot read {file}: {error}") from error
            for number, line in enumerate(text.splitlines(), start=1) if file.suffix == ".txt" else ():
                try:
                    row = json.loads(line)
                    right, dialogue = [str(drug) for drug in row["label"]], " ".join(map(str, row["dialog"]))
                except (ValueError, KeyError, TypeError) as error:
                    raise InputError(f"{file}:{number}: not a dialogue of DialMed: {error}") from error
                unknown = next((drug for drug in right if drug not in drugs), None)
                if unknown is not None:
                    raise InputError(f"{file}:{number}: the drug {unknown!r} is not in label.json")
                split = {"dev": "validation"}.get(file.stem, file.stem)
                if split == "validation" and not published:
                    split = "validation" if share_of(dialogue) < _VALIDATION else "train"
                for drug in dict.fromkeys(right):
                    others = tuple(name for name in drugs if name == drug or name not in right)
                    user = f"{file.stem}-{number}-{drug}"
                    cases.append(GivenCase(user, split, drug, query=dialogue, candidates=others))
        moved = 0 if published else sum(case.split == "train" for case in cases)
        return interactions_of(
            cases, {drug: drug for drug in drugs}, files, {"development cases that train": moved} if moved else {}
        )
