"""Every comparison through the command line, on a tiny random model: what is computed must agree; no time is asserted."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

import benchmarks
from benchmarks.__main__ import main
from benchmarks.commands import perf as command
from benchmarks.commands import perf as families
from benchmarks.commands.perf import NAMES
from benchmarks.perf import peers, report, scoring, training
from benchmarks.perf.compare import Spawned, run_comparison
from benchmarks.perf.measure import DisagreementError
from benchmarks.perf.report import markdown
from benchmarks.perf.setting import Setting
from datamodules.contract.errors import InputError
from tests.benchmarks.launchers.fake_runs import wait_for

COMPARISONS = {
    "score_20": ["padded"],
    "score_100": ["padded"],
    "train_8_titles": ["Trainer", "SFTTrainer"],
    "train_8_pointwise": ["Trainer", "SFTTrainer"],
    "train_8_windows": ["Trainer", "SFTTrainer"],
    "train_1": ["Trainer", "SFTTrainer"],
    "catalogue": ["padded"],
    "beam": ["generate"],
}


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def quick(tiny: Path, out: Path) -> list[str]:
    common = ["perf", "--quick", "--backbone", str(tiny), "--history", "4", "--threads", "1", "--out", str(out)]
    return [*common, "--precision", "bfloat16"]


def finite(numbers: Any) -> bool:
    return bool(numbers) and all(math.isfinite(n) and n > 0 for n in numbers)


def test_everything_in_one_run(
    mini_data: Path, tiny_causal: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "README.md"
    page.write_text("before <!-- perf:begin -->old<!-- perf:end --> after")
    out = tmp_path / "deep" / "perf.json"
    code = main([*quick(tiny_causal, out), "--one-process", "--repetitions", "1", "--readme", str(page)])
    printed = capsys.readouterr()
    assert code == 0, printed.out + printed.err

    results = json.loads(out.read_text())
    environment = results["environment"]
    assert {"date", "cpu", "threads", "versions", "setting", "seconds"} <= set(environment)
    assert {"torch", "transformers", "peft", "trl", "lightning", "accelerate"} <= set(environment["versions"])
    assert environment["setting"]["quick"]
    assert list(results["comparisons"]) == list(COMPARISONS)
    for name, row in results["comparisons"].items():
        ours, *others = row["sides"]
        assert ours == row["ours"]
        assert others == list(row["speed_up"]) == COMPARISONS[name]
        for side in row["sides"].values():
            assert len(side["seconds"]) == 1
            assert finite(side["seconds"])
            assert side["memory"] == {}  # one process
            assert side["config"] or name == "catalogue"
        for factor in row["speed_up"].values():
            assert factor["target"] > 1
            assert finite([factor["median"], factor["min"], factor["max"]])
        seen = {(a["peer"], a["precision"]) for a in row["agreement"]}
        assert seen == {(peer, precision) for peer in others for precision in ("bfloat16", "float32")}
        for agreement in row["agreement"]:
            assert 0 <= agreement["difference"] <= agreement["tolerance"]
    for step in results["limit"]["steps"].values():
        assert finite([step["ratio"], step["rate"], *step["flops"], *step["seconds"]])
    assert results["loading"]["wait_fraction"] >= 0
    assert results["loading"]["instructions_per_second_per_core"] > 0

    assert {path.name for path in out.parent.iterdir()} == {"perf.json", "perf.md", "perf.png", "perf_profile.png"}
    table = out.with_suffix(".md").read_text()
    assert "times mean nothing" in table
    assert table in printed.out
    text = page.read_text()
    assert table.strip().splitlines()[0] in text
    assert "](deep/perf.png)" in text
    assert text.startswith("before")
    assert "old" not in text
    assert str(out) in printed.out.splitlines()[-1]


def test_float32_is_measured_and_said_where_there_are_no_bfloat16_units(
    mini_data: Path, tiny_causal: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for question in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, question, lambda: False)
    out = tmp_path / "perf.json"
    page = tmp_path / "README.md"
    page.write_text("<!-- perf:begin -->kept<!-- perf:end --><!-- perf-float32:begin -->old<!-- perf-float32:end -->")
    options = ["score_20", "train_1", "limit", "--precision", "auto", "--share", "0.5", "--one-process"]
    assert main([*quick(tiny_causal, out), *options, "--repetitions", "1", "--readme", str(page)]) == 0
    assert "<!-- perf:begin -->kept<!-- perf:end -->" in page.read_text()
    assert "old" not in page.read_text()
    results = json.loads(out.read_text())
    assert results["environment"]["setting"]["precision"] == "float32"
    for row in results["comparisons"].values():
        assert {a["precision"] for a in row["agreement"]} == {"float32"}
        assert all(a["tolerance"] <= 1e-4 for a in row["agreement"])
    assert results["comparisons"]["train_1"]["sides"]["trees"]["config"]["precision"] == "32-true"
    table = out.with_suffix(".md").read_text()
    assert f"{tiny_causal.name} in float32 on" in table
    assert "has 0.5 of the usual users and windows" in table
    assert "Float32, as the processor has no bfloat16 units." in table
    assert "difference in float32 |" in table
    assert "the best measured float32 rate" in table
    assert "in bfloat16" not in table


def test_a_table_of_an_earlier_version_says_bfloat16() -> None:
    record = Path(benchmarks.__file__).parent / "records" / "perf" / "cpu"
    results = json.loads(record.with_suffix(".json").read_text())
    assert results["environment"]["setting"].pop("precision") == "bfloat16"
    assert markdown(results) == record.with_suffix(".md").read_text()


def test_both_sides_train_on_with_one_optimiser(mini_data: Path, tiny_causal: Path) -> None:
    setting = Setting(backbone=str(tiny_causal), precision="float32", threads=1, repetitions=1, history=4, quick=True)
    setting.apply()
    ours, peer = training.OurTraining(setting, "single"), peers.TrainerPeer(setting, "single")
    peer.prepare()
    for side, optimizer in ((ours, lambda: ours.model.optimizer.made), (peer, lambda: peer.optimizer)):
        first = side.turn(0).values
        assert set(first) == {"loss", "gradient"}
        kept = optimizer()
        assert set(side.turn(1).values) == {"loss"}
        assert optimizer() is kept
        assert {int(state["step"]) for state in kept.state.values()} == {2}


def test_sides_in_their_own_processes_have_memory_of_their_own(mini_data: Path, tiny_causal: Path) -> None:
    setting = Setting(backbone=str(tiny_causal), threads=1, repetitions=1, history=4, quick=True)
    made = run_comparison(scoring.comparison("score_20", 20, 8), setting, lambda _: None, one_process=False)
    for side in made["sides"].values():
        assert side["memory"]["baseline_bytes"] > 10_000_000
        assert side["memory"]["peak_bytes"] > 10_000_000


@pytest.mark.slow  # two processes that import everything
def test_what_fails_in_another_process_is_told_here(mini_data: Path, tiny_causal: Path) -> None:
    setting = Setting(backbone=str(tiny_causal), threads=1, history=4, quick=True)
    sides = [Spawned(partial(scoring.Padded, candidates=n), setting) for n in (1000, "many")]  # type: ignore[arg-type]
    try:
        with pytest.raises(InputError, match="negatives"):
            sides[0].prepare()
        with pytest.raises(RuntimeError, match="TypeError"):
            sides[1].prepare()
    finally:
        for side in sides:
            side.stop()


def test_sides_of_unequal_weights_are_found_out(
    mini_data: Path, tiny_causal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(named: Any) -> None:
        for _, value in named:
            value.data.fill_(0.01)

    monkeypatch.setattr(training, "fill_adapters", other)  # ours alone
    setting = Setting(backbone=str(tiny_causal), threads=1, repetitions=1, history=4, quick=True)
    comparison = training.comparison("train_1", "single", "x", 2, 2)
    with pytest.raises(DisagreementError, match="gradient"):
        run_comparison(comparison, setting, lambda _: None, one_process=True)


@pytest.mark.slow  # two processes that import everything
def test_a_side_ends_with_a_run_that_is_killed(tmp_path: Path) -> None:
    """It once went on to the end of its turn."""
    place = tmp_path / "pid"
    script = (
        "import functools, pathlib, time\n"
        "from benchmarks.perf.setting import Setting\n"
        "from benchmarks.perf.compare import Spawned\n"
        "from tests.benchmarks.perf.hanging import hang\n"
        f"side = Spawned(functools.partial(hang, pathlib.Path({str(place)!r})), Setting(threads=1))\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], cwd=Path(benchmarks.__file__).parents[1]) as run:
        wait_for(place.exists)
        run.kill()
        psutil.Process(int(place.read_text())).wait(timeout=10)


def test_works_are_added_to_an_earlier_run(
    mini_data: Path,
    tiny_causal: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "perf.json"
    often = [*quick(tiny_causal, out), "--one-process", "--repetitions", "1", "--add"]
    assert main([*often, "loading", "beam"]) == 0
    first = json.loads(out.read_text())
    monkeypatch.setattr(report, "checkout_state", lambda: {"commit": "f" * 40, "dirty": False})
    monkeypatch.setattr(families, "run_loading", lambda *_: pytest.fail("what is there is not measured again"))
    monkeypatch.setattr(command, "NAMES", dict.fromkeys(("score_20", "beam", "loading"), ""))
    assert main(often) == 0
    results = json.loads(out.read_text())
    assert list(results["comparisons"]) == ["score_20", "beam"]
    assert results["comparisons"]["beam"] == first["comparisons"]["beam"]
    assert results["loading"] == first["loading"]
    assert results["comparisons"]["score_20"]["run"]["commit"] == "f" * 40
    assert results["environment"]["seconds"] > first["environment"]["seconds"]
    table = out.with_suffix(".md").read_text()
    assert "the works are from 2 runs, at " in table
    assert "fffffffff of " in table

    capsys.readouterr()
    before = out.read_bytes()
    assert main([*often, "beam", "--history", "5"]) == 2
    told = capsys.readouterr().err
    assert "was measured with another setting: history 4, now 5; give another --out" in told
    assert out.read_bytes() == before
    out.write_text("[]")
    assert main([*often, "beam"]) == 2
    assert "does not hold results of perf" in capsys.readouterr().err


def test_a_comparison_that_fails_leaves_the_others_and_exits_with_1(
    mini_data: Path, tiny_causal: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("no memory left")

    monkeypatch.setattr(scoring, "score_padded", broken)
    out = tmp_path / "perf.json"
    assert main([*quick(tiny_causal, out), "score_20", "loading", "--one-process", "--repetitions", "1"]) == 1
    results = json.loads(out.read_text())
    assert results["comparisons"]["score_20"]["error"] == "no memory left"
    assert results["loading"]["wait_fraction"] >= 0
    assert "`score_20` failed: no memory left" in out.with_suffix(".md").read_text()
    assert not out.with_suffix(".png").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["scores", "--out", "x.json"], "perf measures no 'scores'; the nearest is 'score_"),
        (["--out", "x.txt"], "must be a .json file"),
        (["--out", "x.json", "--threads", "0"], "--threads is 0, must be at least 1"),
        (["--out", "x.json", "--repetitions", "0"], "--repetitions is 0"),
        (["--out", "x.json", "--history", "0"], "--history is 0"),
        (["--out", "x.json", "--share", "0"], "--share is 0, must be above 0 and at most 1"),
        (["--out", "x.json", "--share", "1.5"], "--share is 1.5"),
        (["--out", "x.json", "--seed", "-1"], "--seed is -1"),
        (["--out", "x.json", "--readme", "nowhere.md"], "does not exist"),
        (["--out", "x.json", "--device", "cuda"], "no GPU"),
        (["--out", "x.json", "--backbone", "smolm2"], "smollm2-135m-instruct"),
    ],
)
def test_wrong_input_is_one_line(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["perf", *arguments]) == 2
    said = capsys.readouterr().err
    assert told in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [[], ["--out"], ["--out", "x.json", "--thread", "1"], ["--device", "tpu"]])
def test_unknown_options_are_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["perf", *arguments])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_without_trl_the_extra_is_named(
    tmp_path: Path, tiny_causal: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None if name == "trl" else find(name))
    assert main([*quick(tiny_causal, tmp_path / "x.json"), "train_1"]) == 2
    assert "pip install 'instructrec[perf]'" in capsys.readouterr().err


def test_help_tells_every_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["perf", "--help"])
    assert stopped.value.code == 0
    told = capsys.readouterr().out
    assert all(f"  {name} " in told for name in NAMES)
    for promise in ("--readme", "one-process", "40 minutes", "not been"):
        assert promise in told


def test_an_architecture_that_cannot_be_shrunk_is_named(
    mini_data: Path, tiny_encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*quick(tiny_encoder, tmp_path / "x.json"), "loading"]) == 2
    assert "(bert): it has no num_key_value_heads" in capsys.readouterr().err
