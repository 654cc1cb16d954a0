"""A data module's stages: what exists when, and that nothing is read or computed twice."""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import lightning as L
import pytest

from datamodules.contract.objectives import ModelNeeds
from datamodules.datasets.movielens import MovieLens100K
from datamodules.protocol.rules import Protocol
from recmodels import Popularity

OPENED: Counter[str] = Counter()
"""How often this process has opened each file of MovieLens, as the interpreter itself tells."""
NEEDS, PROTOCOL = ModelNeeds("interactions"), Protocol(negatives=5)


def _count(event: str, given: tuple[Any, ...]) -> None:
    if event == "open" and str(given[0]).rpartition("/")[2].startswith("ml-100k."):
        OPENED[Path(str(given[0])).name] += 1


sys.addaudithook(_count)  # for the life of the process: hooks cannot be taken back


def test_what_a_stage_makes_is_asked_for_too_early(mini_data: Path, tiny_causal: Path) -> None:
    data = MovieLens100K(backbone=str(tiny_causal), protocol=PROTOCOL)
    for name in ("frozen", "slates", "collator"):
        with pytest.raises(RuntimeError, match=r"MovieLens100K is not set up; call setup\(\)"):
            getattr(data, name)
    frozen = data.freeze()
    assert data.frozen is frozen
    assert data.slates is frozen.slates
    assert data.sequences is frozen.sequences
    with pytest.raises(RuntimeError, match=re.escape("call setup()")):
        _ = data.collator
    data.setup()
    assert data.frozen is frozen
    assert data.collator.text is frozen.text


@pytest.mark.filterwarnings("ignore")  # of Lightning, about a counting model
def test_raw_files_are_read_once_a_process(mini_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One run: prepared, fitted and tested, as Lightning orders it, against one bare `read`."""
    parsed = []
    read = MovieLens100K.read
    monkeypatch.setattr(MovieLens100K, "read", lambda self: (parsed.append(self), read(self))[1])
    OPENED.clear()
    MovieLens100K(needs=NEEDS, protocol=PROTOCOL).read()
    once = Counter(OPENED)
    OPENED.clear()
    parsed.clear()

    data = MovieLens100K(needs=NEEDS, protocol=PROTOCOL)
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(accelerator="cpu", max_epochs=1, num_sanity_val_steps=0, **quiet)
    model = Popularity()
    for stage in (trainer.fit, trainer.test):
        stage(model, datamodule=data)

    assert len(parsed) == 1
    assert once
    assert once == OPENED
    assert data._tables is None  # not kept beside what was made of it


def test_tables_at_hand_are_not_read_again(mini_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = MovieLens100K().read()
    monkeypatch.setattr(MovieLens100K, "read", lambda self: pytest.fail("read again"))
    data = MovieLens100K(needs=NEEDS, protocol=PROTOCOL)
    assert data.freeze(tables).sequences.item_ids == sorted(
        tables.items["item"].to_list(), key=data.sequences.item_ids.index
    )


def test_a_case_under_several_rules_has_one_prompt(mini_data: Path, tiny_causal: Path) -> None:
    """Its lists are branches of one tree; a catalogue, which is ranked in another way, makes batches of its own."""
    rules = ("uniform", "popularity", "full")
    data = MovieLens100K(backbone=str(tiny_causal), protocol=Protocol(negatives=5, also=rules[1:]))
    data.setup()
    both = next(iter(data.test_dataloader()))
    assert both.rule == ("", "popularity") * (len(both.case) // 2)
    assert both.case[::2].tolist() == both.case[1::2].tolist()
    apart = 0
    for rule in ("", "popularity"):
        alone = next(iter(data.evaluation_loader("test", (rule,))))
        assert alone.case.tolist() == both.case[::2].tolist()
        mine = [both.rule[case] == rule for case in both.branch_case.tolist()]
        assert both.branch_item[mine].tolist() == alone.branch_item.tolist()
        apart += alone.tokens
    assert both.tokens < 0.7 * apart
    kinds = [(type(batch).__name__, set(batch.rule)) for batch in data.test_dataloader()]
    lists = len(kinds) // 2
    assert kinds == [("PromptTreeBatch", {"", "popularity"})] * lists + [("CatalogueBatch", {"full"})] * lists
    seen = [case for batch in data.test_dataloader() for case in batch.case.tolist()]
    assert Counter(seen) == dict.fromkeys(range(len(data.sequences.test)), 3)
    assert not data.val_dataloader().collate_fn([0]).rule
