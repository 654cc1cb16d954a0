"""The audit's command: what it prints, its exit codes, its refusals."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.__main__ import main

ROOT = Path(__file__).parents[3]
DATA = str(ROOT / "configs" / "data" / "ml_100k.yaml")


def test_the_miniatures_ties_and_twin_titles_are_found(
    mini_data: Path, titles: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "audit.json"

    assert main(["audit", "-c", DATA, "--json", str(out)]) == 1

    told = capsys.readouterr().out
    found = {each["check"]: each for each in json.loads(out.read_text())["findings"]}
    assert {name for name, each in found.items() if each["verdict"] == "warning"} >= {
        "tied timestamps",
        "duplicate titles",
    }
    assert found["duplicate titles"]["count"] == len(titles) - sum(n == 1 for n in Counter(titles).values())
    assert all(name in told for name in found)
    assert "duplicate titles: add what tells them apart" in told
    assert {f"probe: {name}" for name in ("constant", "position only", "largest id plus one")} <= set(found)


def test_a_clean_data_set_ends_with_nought(
    data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "ml-100k"
    folder.mkdir()
    head, *rows = (data_root / "ml-100k" / "ml-100k.inter").read_text().splitlines()
    lines = ["\t".join([*row.split("\t")[:3], str(n)]) for n, row in enumerate(rows)]
    (folder / "ml-100k.inter").write_text("\n".join([head, *lines]) + "\n")
    items = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq"
    body = [f"{n + 1}\tFilm {chr(65 + n % 26)}{n}\t1990\tDrama" for n in range(40)]
    (folder / "ml-100k.item").write_text("\n".join([items, *body]) + "\n")
    monkeypatch.setenv("INSTRUCTREC_DATA", str(tmp_path))

    assert main(["audit", "-c", DATA]) == 0, capsys.readouterr().out
    assert "clean: nothing found" in capsys.readouterr().out


@pytest.mark.parametrize("task", ["like", "reranking"])
def test_other_tasks_are_audited_too(
    task: str, mini_data: Path, tiny_causal: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["audit", "-c", DATA, f"--data.task={task}"]) == 1
    assert "label-token collisions" in capsys.readouterr().out


def test_the_memorisation_probe_asks_a_model(
    mini_data: Path, tiny_causal: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["audit", "-c", DATA, "--memorisation", str(tiny_causal)]) == 1
    assert "of titles beyond guessing" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--data.protocol.fold=7"], "protocol.fold is 7, must be 0 to 4"),
        (["--data.protocol.splt=ratio"], "splt"),
        (["--data.protocol.split=published"], "needs a column `split`"),
        (["--data.protocol.negatives=40"], "protocol.negatives is 40"),
        (["--memorisation", "smolm2"], "no backbone 'smolm2'"),
        (["--data.protocol.split=weekly"], "weekly"),
    ],
)
def test_wrong_input_is_one_line_and_two(
    arguments: list[str], told: str, mini_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(["audit", "-c", DATA, *arguments])
    except SystemExit as end:
        code = end.code  # type: ignore[assignment]

    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("instructrec: ")]
    assert code == 2
    assert len(error) == 1
    assert told in error[0]


def test_help_names_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["audit", "--help"])

    assert end.value.code == 0
    assert "exit codes: 0 clean, 1 something was found, 2 the input is wrong" in capsys.readouterr().out
