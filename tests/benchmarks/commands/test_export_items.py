"""Vectors of items that one run learnt are what another starts from."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
import torch

from benchmarks.__main__ import main
from datamodules.contract.errors import InputError
from datamodules.datasets.movielens import MovieLens100K
from datamodules.items.token import Token
from datamodules.items.vectors import read_item_vectors, write_item_vectors
from recmodels.backbones.causal import load_causal
from recmodels.layers.item_factors import item_factors
from tests.datamodules.options import grouped

WARNINGS = ("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
pytestmark = [pytest.mark.filterwarnings(rule) for rule in WARNINGS]


def fit(out: Path, *words: str) -> Path:
    quiet = ["--trainer.logger=false", "--trainer.accelerator=cpu", "--trainer.max_steps=1", f"--out={out}"]
    assert main(["fit", "-c", "ml_100k", *quiet, *words]) == 0
    return out / "checkpoints" / "last.ckpt"


def test_items_start_where_another_run_ended(
    tiny_causal: Path, mini_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, own = tmp_path / "svd.parquet", tmp_path / "own.parquet"
    checkpoint = fit(tmp_path / "svd", "-c", "pure_svd", "--model.factors=5")
    assert main(["export", str(checkpoint), "--items", str(file)]) == 0
    assert "vectors of 5 numbers; columns item, title, vector" in capsys.readouterr().out

    data = MovieLens100K(backbone=str(tiny_causal), items=Token(str(file)), **grouped(paraphrase="dense"))
    data.setup()
    items = data.item_tokens
    assert items is not None
    assert items.vectors is not None
    from_events = MovieLens100K(backbone=str(tiny_causal), items=Token("events"), **grouped(paraphrase="dense"))
    from_events.setup()
    events = from_events.item_tokens.events  # type: ignore[union-attr]
    assert events is not None
    torch.testing.assert_close(items.vectors, item_factors(events, 5))
    titles = dict(pl.read_parquet(file).select("item", "title").iter_rows())
    assert [titles[item] for item in data.sequences.item_ids] == list(data.sequences.titles)

    lora = [f"--model.backbone={tiny_causal}", f"--data.items.start={file}", "--model.optimizer.lr=1e-9"]
    checkpoint = fit(tmp_path / "lora", "-c", "lora", "-c", "token", *lora, "--data.batch_size=2")
    assert main(["export", str(checkpoint), "--items", str(own)]) == 0
    backbone = load_causal(str(tiny_causal), "float32")
    backbone.add_items(items)
    learnt = read_item_vectors(own, data.sequences.item_ids)
    torch.testing.assert_close(learnt, backbone.item_vectors().detach(), atol=1e-6, rtol=0)
    # As wide as the backbone, they are taken as they are.
    data = MovieLens100K(backbone=str(tiny_causal), items=Token(str(own)), **grouped(paraphrase="dense"))
    data.setup()
    backbone = load_causal(str(tiny_causal), "float32")
    backbone.add_items(data.item_tokens)  # type: ignore[arg-type]
    assert torch.equal(backbone.item_vectors(), learnt)


def test_what_has_no_vectors_of_items_is_told(
    mini_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = fit(tmp_path / "run", "-c", "popularity")
    for file, expected in (
        ("a.parquet", "Popularity learns no vectors of items; language models do with --data.items Token"),
        ("a.csv", "is no .parquet file"),
    ):
        assert main(["export", str(checkpoint), "--items", str(tmp_path / file)]) == 2
        assert expected in capsys.readouterr().err
        assert not (tmp_path / file).exists()


def test_vectors_are_found_by_id(tmp_path: Path) -> None:
    vectors = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    write_item_vectors(tmp_path / "a.parquet", ["7", "8", "9"], ["x", "y", "z"], vectors)
    torch.testing.assert_close(read_item_vectors(tmp_path / "a.parquet", ["9", "7"]), vectors[[2, 0]])
    with pytest.raises(InputError, match=r"a.parquet lacks 2 of the data's 3 items, such as '6'"):
        read_item_vectors(tmp_path / "a.parquet", ["6", "7", "5"])
    with pytest.raises(InputError, match="b.parquet does not exist; `instructrec export CKPT --items FILE` writes one"):
        read_item_vectors(tmp_path / "b.parquet", ["7"])


def test_a_file_of_other_tools_is_read_or_refused_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"

    def refusal(table: pl.DataFrame) -> str:
        table.write_parquet(file)
        with pytest.raises(InputError) as told:
            read_item_vectors(file, ["7", "8"])
        assert "\n" not in str(told.value)
        return str(told.value)

    pl.DataFrame({"item": [8, 7], "vector": [[1.0, 2.0], [3.0, 4.0]]}).write_parquet(file)  # numbers, lists
    assert read_item_vectors(file, ["7", "8"]).tolist() == [[3.0, 4.0], [1.0, 2.0]]
    assert "holds item '7' twice" in refusal(pl.DataFrame({"item": ["7", "7", "8"], "vector": [[1.0]] * 3}))
    assert "must be numbers of one length" in refusal(pl.DataFrame({"item": ["7", "8"], "vector": [[1.0], [1.0, 2.0]]}))
    assert "must be numbers of one length" in refusal(pl.DataFrame({"item": ["7", "8"], "vector": ["a", "b"]}))
    assert "not finite" in refusal(pl.DataFrame({"item": ["7", "8"], "vector": [[1.0], [float("nan")]]}))
    assert "is no file of item vectors" in refusal(pl.DataFrame({"item": ["7", "8"], "vectors": [[1.0], [2.0]]}))
    file.write_text("no parquet")
    with pytest.raises(InputError, match="is no file of item vectors"):
        read_item_vectors(file, ["7"])


def test_a_start_is_known_and_fits(tiny_causal: Path, mini_data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data.items.start is 'event', must be title, random, events, or a file"):
        Token("event")
    file = tmp_path / "wide.parquet"
    data = MovieLens100K(backbone=str(tiny_causal), items=Token(str(file)), **grouped(paraphrase="dense"))
    data.setup()
    ids = data.sequences.item_ids
    write_item_vectors(file, ids, ids, torch.randn(len(ids), 33))
    with pytest.raises(InputError, match=r"wide.parquet holds vectors of 33 numbers, and backbone .* is 32 wide"):
        load_causal(str(tiny_causal), "float32").add_items(data.item_tokens)  # type: ignore[arg-type]
