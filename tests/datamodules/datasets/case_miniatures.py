"""Small data sets in their true layout, for loaders that read nobody's files but the user's own."""

from __future__ import annotations

import json
from pathlib import Path

INSTRUCTION = "Given the user's preference and unpreference, identify whether the user will like the target movie."


def _example(liked: str, disliked: str, target: str, answer: str, kind: str = "movie") -> dict[str, str]:
    asked = f"Whether the user will like the target {kind} {target}?"
    told = f"User Preference: {liked}\nUser Unpreference: {disliked}\n{asked}"
    return {"instruction": INSTRUCTION, "input": told, "output": f"{answer}."}


def write_case_data(root: Path) -> None:
    """Writes the folders that INSTRUCTREC_DATA has for data sets of single cases."""
    movies = [
        _example('"Paris, Texas (1984)"', '"Alien (1979)"', '"Say "Cheese", Yes (1990)"', "No"),
        _example('"Alien (1979)", "Heat (1995)"', "", '"Paris, Texas (1984)"', "Yes"),
        _example("", '"Heat (1995)", "Big (1988)"', '"Alien (1979)"', "No"),
        _example('"Big (1988)"', '"Heat (1995)"', '"Alien (1979)"', "Yes"),
    ]
    sula, east = '"Sula" written by Toni Morrison', '"East, West" written by Salman Rushdie'
    books = [
        _example(f"{sula}, {east}", "", '""Epitaph" written by David M. Masumoto"', "No", "book"),
        _example(east, "", f'"{sula}"', "Yes", "book"),
    ]
    for name, examples in (("tallrec_movie", movies), ("tallrec_book", books)):
        for part in ("train", "valid", "test"):
            _write(root / name / f"{part}.json", json.dumps(examples, indent=4))
    topics = ["card_arrival", "lost_card", "top_up", "exchange_rate", "pin", "refund", "fees", "atm"]
    asked = [f"Question {n} about it?,{topics[n % 8]}" for n in range(60)]
    _write(root / "faq_banking77/train.csv", "\n".join(["text,category", *asked]) + "\n")
    _write(
        root / "faq_banking77/test.csv",
        'text,category\r\n"Where, is my ""card""?",card_arrival\r\nLost it,lost_card\r\n',
    )
    questions = [
        {
            "id": f"FS_{n}",
            "item_a_name": f"Cable {n % 30}",
            "assertion": "PersonX bought a product of Item A and a product of Item B because they both are useful.",
            "options": {letter: f"Option {letter}{n % 7}" for letter in "ABCD"},
            "gold_ind": "ABCD"[n % 4],
        }
        for n in range(40)
    ]
    lines = "\n".join(map(json.dumps, questions)) + "\n"
    _write(root / "intentionqa/QA_task2/QA_fullInfo/QA_fullInfo_task2.jsonl", lines)
    folder = root / "zh_dialmed/data/dataset"
    _write(folder / "label.json", json.dumps({"甲": 0, "乙": 1, "丙": 2}, ensure_ascii=False))
    for part, drugs in (("test", [["甲"], ["甲", "乙"]]), ("dev", [["甲", "丙"], ["乙"]] * 12)):
        rows = [{"label": d, "dialog": [f"患者：{part}{n}头疼", "医生：吃[MASK]"]} for n, d in enumerate(drugs)]
        _write(folder / f"{part}.txt", "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
